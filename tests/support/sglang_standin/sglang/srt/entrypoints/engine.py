from __future__ import annotations

import asyncio
from typing import Any

from sglang.srt.arg_groups.fields.serving import Serving
from sglang.srt.managers.tokenizer_manager import TokenizerManager

# As SGLang sets uvloop's when it is imported.
asyncio.set_event_loop_policy(asyncio.DefaultEventLoopPolicy())


class Engine:
    def __init__(self, **kwargs):
        self.server_args = Serving(**kwargs)
        if self.server_args.json_model_override_args != "{}":
            raise RuntimeError("Initialization failed. Please see the error messages above.")
        print("this must not go to standard output")
        self.tokenizer_manager = TokenizerManager(self.server_args)
        self.loop = asyncio.get_event_loop_policy().get_event_loop()

    async def async_generate(
        self,
        prompt: str | None = None,
        sampling_params: dict | None = None,
        input_ids: list[int] | None = None,
        return_logprob: bool | None = False,
        top_logprobs_num: int | None = None,
        lora_path: str | None = None,
        stream: bool = False,
        rid: str | None = None,
    ):
        outputs = self.tokenizer_manager.answers(
            input_ids, sampling_params, return_logprob, top_logprobs_num, lora_path, stream, rid
        )
        return outputs if stream else await anext(outputs)

    async def async_encode(self, prompt: str | list[str], dimensions: int | None = None):
        return await self.tokenizer_manager.embeddings(prompt, dimensions)

    async def async_score(
        self,
        query: str | list[int] | None = None,
        items: str | list[str] | list[list[int]] | None = None,
        label_token_ids: list[int] | None = None,
        apply_softmax: bool = False,
        item_first: bool = False,
    ):
        assert isinstance(query, list)
        assert not apply_softmax
        assert not item_first
        return await self.tokenizer_manager.scores(query, items, label_token_ids)

    async def async_load_lora_adapter(self, lora_name: str, lora_path: str, pinned: bool = False):
        return self.tokenizer_manager.load(lora_name, lora_path)

    async def async_unload_lora_adapter(self, lora_name: str):
        return self.tokenizer_manager.unload(lora_name)

    def collective_rpc(self, method: str, **kwargs):
        assert method == "save_sharded_model", f"no such method: {method}"

    def get_server_info(self) -> dict[str, Any]:
        states = self.loop.run_until_complete(self.tokenizer_manager.get_internal_state())
        return {
            **{name: getattr(self.server_args, name) for name in Serving.__struct_fields__},
            "internal_states": states,
        }

    def shutdown(self): ...
