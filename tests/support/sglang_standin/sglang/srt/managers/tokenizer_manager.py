"""The part of SGLang's tokenizer manager that Penstock uses, around a model that draws its answers
from the prompt.

Tokens are bytes. As in SGLang, a streamed output is an increment, text holds stop strings and their
beginnings, and a constraint that cannot be compiled ends its request with a status.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
from codecs import getincrementaldecoder
from itertools import takewhile
from operator import eq
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from penstock.engines.simulated.answers import instance, seeded
from sglang.srt.managers.io_struct import (
    ContinueGenerationReqInput,
    FlushCacheReqOutput,
    LoRAUpdateOutput,
    PauseGenerationReqInput,
    ReleaseMemoryOccupationReqInput,
    ResumeMemoryOccupationReqInput,
)
from sglang.srt.managers.load_snapshot import LoadSnapshot
from sglang.srt.sampling.sampling_params import SamplingParams

WORDS = ("gate ", "turbine ", "flow ", "head ", "Grüße ", "sluice ", "naïve ", "basin ")


class Tokenizer:
    """In the place of transformers' tokenizer."""

    chat_template = (
        "{% for m in messages %}{{ m['content'] }}\n{% endfor %}{{ tools | tojson if tools else"
        " '' }}"
    )
    special_tokens_map: ClassVar = {"eos_token": "<end>"}

    def __len__(self) -> int:
        return 256

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return list(text.encode())

    def decode(self, token_ids: list[int], skip_special_tokens: bool = False) -> str:
        return bytes(token_ids).decode(errors="replace")


class Scores(NamedTuple):
    scores: list[list[float]]
    prompt_tokens: int


class ModelConfig:
    vocab_size = 256


class TokenizerManager:
    def __init__(self, server_args: Any) -> None:
        self.server_args = server_args
        self.tokenizer = Tokenizer()
        self.model_config = ModelConfig()
        self.is_generation = not server_args.is_embedding
        self.context_len = server_args.context_length or 4096
        self.max_req_input_len = self.context_len - 6
        self.slots = asyncio.Semaphore(server_args.max_running_requests or 16)
        self.states: dict[str, asyncio.Event] = {}  # aborts by request id
        self.prompts: dict[str | None, list[list[int]]] = {}
        self.adapters: dict[str, str] = {}
        self.resumed = asyncio.Event()
        self.resumed.set()
        self.asleep: list[str] = []
        self.event_loop: asyncio.AbstractEventLoop | None = None
        self.whole: dict[str, dict[str, Any]] = {}

    def auto_create_handle_loop(self):
        """What listens to the scheduler stays on the loop that first asked for something."""
        if self.event_loop is None:
            self.event_loop = asyncio.get_running_loop()
        assert self.event_loop is asyncio.get_running_loop(), "nobody would answer on this loop"

    # Control
    def abort_request(self, rid: str = "", abort_all: bool = False):
        for name, aborted in self.states.items():
            if abort_all or name == rid:
                aborted.set()

    async def pause_generation(self, obj: PauseGenerationReqInput):
        self.resumed.clear()
        if obj.mode == "abort":
            self.abort_request(abort_all=True)

    async def continue_generation(self, obj: ContinueGenerationReqInput):
        self.resumed.set()

    async def flush_cache(self, timeout_s: float | None = None):
        if not self.states:
            self.prompts.clear()
        return FlushCacheReqOutput(success=not self.states)

    async def release_memory_occupation(
        self, obj: ReleaseMemoryOccupationReqInput, request: Any = None
    ):
        assert not self.states, "should be called only when server is idle"
        self.asleep = obj.tags or []

    async def resume_memory_occupation(
        self, obj: ResumeMemoryOccupationReqInput, request: Any = None
    ):
        assert obj.tags == self.asleep
        self.asleep = []

    async def get_internal_state(self):
        self.auto_create_handle_loop()
        return [
            {"effective_max_running_requests_per_dp": self.server_args.max_running_requests or 16}
        ]

    async def get_loads(self, include: list[str] | None = None, dp_rank: int | None = None):
        return [LoadSnapshot(num_running_reqs=len(self.states))]

    async def start_profile(self, req: Any = None): ...

    async def stop_profile(self): ...

    def load(self, name: str, path: str) -> LoRAUpdateOutput:
        if name in self.adapters or not Path(path).is_dir():
            return LoRAUpdateOutput(success=False, error_message=f"cannot load {name}")
        self.adapters[name] = path
        return LoRAUpdateOutput(success=True)

    def unload(self, name: str) -> LoRAUpdateOutput:
        return LoRAUpdateOutput(success=self.adapters.pop(name, None) is not None)

    # Requests
    async def answers(
        self,
        ids: list[int],
        given: dict,
        logprob: bool,
        top: int,
        lora: str | None,
        stream: bool,
        rid,
    ):
        self.auto_create_handle_loop()
        if lora is not None and lora not in self.adapters:
            raise ValueError(f"Got LoRA adapter that has never been loaded: {lora}")
        params = SamplingParams(**given)
        assert not self.asleep, "a request while the memory is given away"
        assert len(ids) + params.max_new_tokens < self.context_len
        aborted = self.states[rid] = asyncio.Event()
        try:
            async with self.slots:
                async for output in self.increments(ids, params, logprob, top, lora, aborted):
                    if stream:
                        yield output
                    else:
                        self.joined(output, rid)
                if not stream:
                    yield self.whole.pop(rid)
        finally:
            del self.states[rid]
            self.whole.pop(rid, None)

    async def increments(self, ids, params, logprob, top, lora, aborted):
        cached = self.cached(ids, self.adapters.get(lora or ""))
        try:
            answer = self.answer(ids, params, self.adapters.get(lora or ""))
        except ValueError as error:
            failed = {
                "type": "abort",
                "message": f"Failed to compile the grammar: {error}",
                "status_code": 400,
            }
            yield self.output("", [], failed, len(ids), 0, cached, False, 0)
            return
        text, decoder = "", getincrementaldecoder("utf-8")("replace")
        for number, token in enumerate(answer[: params.max_new_tokens], start=1):
            await self.resumed.wait()
            await asyncio.sleep(0)
            piece = decoder.decode(bytes([token]))
            text += piece
            finish: dict[str, Any] | None = None
            matched = next((stop for stop in params.stop or () if stop in text), None)
            if aborted.is_set():
                finish = {"type": "abort", "message": "Abort before prefill", "status_code": None}
            elif matched is not None:
                finish = {"type": "stop", "matched": matched}
            elif number == params.max_new_tokens and (number < len(answer) or params.ignore_eos):
                finish = {"type": "length", "length": number}
            elif number == len(answer):
                finish = {"type": "stop", "matched": 0}
            yield self.output(piece, [token], finish, len(ids), number, cached, logprob, top)
            if finish:
                return

    def output(self, text, ids, finish, prompt, made, cached, logprob, top) -> dict[str, Any]:
        meta = {
            "finish_reason": finish,
            "prompt_tokens": prompt,
            "completion_tokens": made,
            "cached_tokens": cached,
        }
        if logprob:
            meta["output_token_logprobs"] = [(-0.5, token, None) for token in ids]
            meta["output_top_logprobs"] = [
                [(-0.5 - k, (token + k) % 256, None) for k in range(top)] for token in ids
            ]
        return {"text": text, "output_ids": ids, "meta_info": meta}

    def joined(self, output: dict[str, Any], rid: str) -> None:
        before = self.whole.get(rid)
        if before is not None:
            output["text"] = before["text"] + output["text"]
            output["output_ids"] = before["output_ids"] + output["output_ids"]
            for key in ("output_token_logprobs", "output_top_logprobs"):
                if key in before["meta_info"]:
                    output["meta_info"][key] = before["meta_info"][key] + output["meta_info"][key]
        self.whole[rid] = output

    def cached(self, ids: list[int], adapter: str | None) -> int:
        if self.server_args.disable_radix_cache:
            return 0
        known = self.prompts.setdefault(adapter, [])
        longest = max((sum(takewhile(bool, map(eq, ids, one))) for one in known), default=0)
        known.append(ids)
        return min(longest, len(ids) - 1)

    def answer(self, ids: list[int], params: SamplingParams, adapter: str | None) -> list[int]:
        seed = params.sampling_seed if params.temperature > 0 else None
        draw = (
            random.Random()
            if params.temperature > 0 and seed is None
            else seeded(0, "answer", ids, adapter, seed)
        )
        if params.json_schema is not None:
            return list(json.dumps(instance(json.loads(params.json_schema), draw)).encode())
        if params.regex is not None:
            return list(matching(params.regex).encode())
        answer = list("".join(draw.choices(WORDS, k=8)).encode())
        least = params.max_new_tokens if params.ignore_eos else params.min_new_tokens
        return answer * (1 + (least or 0) // len(answer))

    async def scores(self, query: list[int], items: list[list[int]], labels: list[int]) -> Scores:
        """The probabilities of a few tokens after each item; all 256 tokens have some."""
        self.auto_create_handle_loop()
        assert not self.asleep, "a request while the memory is given away"
        await self.resumed.wait()
        found = []
        for item in items:
            draw = seeded(0, "score", query + item)
            weights = [draw.random() for _ in range(256)]
            found.append([weights[token] / sum(weights) for token in labels])
        return Scores(found, sum(len(query + item) for item in items))

    async def embeddings(self, texts: list[str], dimensions: int | None) -> list[dict[str, Any]]:
        if self.is_generation:
            raise ValueError("This model does not appear to be an embedding model by default.")
        return [
            {
                "embedding": [seeded(0, "embed", text, k).random() for k in range(dimensions or 8)],
                "meta_info": {"prompt_tokens": len(text.encode())},
            }
            for text in texts
        ]


def matching(pattern: str) -> str:
    """A text that matches a simple pattern: letters, and sets so many times. Raises `ValueError`
    for others.
    """
    text = ""
    for literal, members, times, other in re.findall(r"([\w-])|\[(.*?)\]\{(\d+)\}|(.)", pattern):
        if other:
            raise ValueError(f"what is {other!r}")
        text += literal or members[0] * int(times)
    return text
