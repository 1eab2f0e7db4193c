"""A hook that runs before a replica loads its model."""

import os
import tempfile
from pathlib import Path

from ray import serve

from penstock.compat.ray import LLMConfig, build_openai_app

MARK = Path(tempfile.gettempdir(), f"replica-{os.getpid()}")


class Noting:
    """Notes that a replica starts."""

    def __init__(self, llm_config, raise_error_on_callback, path):
        self.llm_config = llm_config
        self.path = path

    def on_before_node_init(self):
        Path(self.path).write_text(f"{self.llm_config.model_id} starts")

    def on_after_node_init(self):
        with open(self.path, "a") as file:
            file.write(", and runs")


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
