"""Hooks that run before a replica loads its model."""

import os
import tempfile
from pathlib import Path

from ray import serve

from penstock.compat.ray import LLMConfig, build_openai_app
from penstock.serve.callbacks import CallbackBase

MARK = Path(tempfile.gettempdir(), f"replica-{os.getpid()}")


class Noting(CallbackBase):
    """Notes that a replica starts. `kwargs` are the configured ones."""

    async def on_before_node_init(self):
        self.note(f"{self.llm_config.model_id} starts")

    async def on_after_node_init(self):
        self.note(", and is ready for its engine")

    def note(self, text):
        with open(self.kwargs["path"], "a") as file:
            file.write(text)


llm_config = LLMConfig(
    model_loading_config={"model_id": "m", "model_source": "simulated"},
    llm_engine="simulated",
    callback_config={"callback_class": Noting, "callback_kwargs": {"path": str(MARK)}},
)

if __name__ == "__main__":
    serve.run(build_openai_app({"llm_configs": [llm_config]}), name="callbacks")
    print(MARK.read_text())
    MARK.unlink()
    serve.delete("callbacks")
