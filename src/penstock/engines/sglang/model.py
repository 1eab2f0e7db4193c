"""The running SGLang engine inside the worker process.

Importing this module takes seconds, needs what SGLang needs, such as a GPU, and raises
`EngineStartError` for an unusable SGLang.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from functools import cached_property
from itertools import count
from typing import Any

import msgspec

from penstock.engines.base import Capabilities
from penstock.engines.decisions.prompts import RequestTexts
from penstock.engines.decisions.tokens import tokenized
from penstock.engines.decisions.trie import Path, Shares, shares
from penstock.engines.process import Ready, Submit
from penstock.engines.sampling import check_id_range, most_new_tokens
from penstock.engines.sglang.options import Load, version_note
from penstock.engines.sglang.translation import DeltaMaker, error_of, sampling_params
from penstock.errors import (
    EngineError,
    EngineStartError,
    ModelNotFoundError,
    PenstockError,
    RequestError,
    UnsupportedError,
    context_overflow,
)
from penstock.types import Delta, Embeddings, Question, Tokens, Usage

try:
    from sglang.srt.entrypoints.engine import Engine
    from sglang.srt.managers.io_struct import (
        ContinueGenerationReqInput,
        PauseGenerationReqInput,
        ReleaseMemoryOccupationReqInput,
        ResumeMemoryOccupationReqInput,
    )
except ImportError as error:
    raise EngineStartError(
        f"the installed SGLang cannot be used: {error}{version_note()}"
    ) from error

_TOP_LOGPROBS = 20  # SGLang has no limit; this is that of OpenAI's API
_RESERVED_TOKENS = 4
"""By how many tokens a prompt with its answer may exceed the longest prompt, as SGLang counts."""


class Model:
    """One model. Constructing it loads; its coroutines answer requests and calls."""

    def __init__(self, load: Load) -> None:
        self._engine = Engine(
            model_path=load.model, incremental_streaming_output=True, **load.arguments
        )
        self._manager = self._engine.tokenizer_manager
        self._tokenizer = self._manager.tokenizer
        self._prompt_limit: int = self._manager.max_req_input_len  # a prompt has fewer
        self._context_length = self._prompt_limit + _RESERVED_TOKENS
        self._vocabulary = max(self._manager.model_config.vocab_size, len(self._tokenizer))
        self._rids = count(1)
        self._names = count(1)
        self._adapters: dict[str, str] = {}
        self._running: set[str] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._open = asyncio.Event()
        self._open.set()
        self._freed: list[str] = []
        self._kept = False

    def ready(self) -> Ready:
        generates = bool(self._manager.is_generation)
        info: dict[str, Any] = self._engine.get_server_info()
        slots = sum(
            state.get("effective_max_running_requests_per_dp") or 0
            for state in info["internal_states"]
        )
        # Else a score call puts delimiters between the input and the questions.
        joined = bool(info.get("enable_mis"))
        constrained = generates and info.get("grammar_backend") != "none"
        capabilities = Capabilities(
            tasks=frozenset(
                {
                    "tokenize",
                    "detokenize",
                    *(("chat", "completions") if generates else ("embeddings",)),
                    *(("decide",) if generates and not joined else ()),
                }
            ),
            context_length=self._context_length,
            max_concurrency=slots or info.get("max_running_requests") or 1,
            structured=frozenset({"json_schema", "json_object", "regex"} if constrained else ()),
            max_top_logprobs=_TOP_LOGPROBS if generates else -1,
            adapters=bool(info.get("enable_lora")),
            prefix_caching=generates and not info.get("disable_radix_cache"),
            extra=frozenset({"return_token_ids"} if generates else ()),
            inputs=("text",),
            vocabulary=self._vocabulary,
        )
        template = self._tokenizer.chat_template
        special = {name: str(token) for name, token in self._tokenizer.special_tokens_map.items()}
        return Ready(capabilities, template, special)

    @cached_property
    def _special_texts(self) -> list[str]:
        added = getattr(self._tokenizer, "added_tokens_decoder", {})
        return [token.content for token in added.values() if token.special]

    def close(self) -> None:
        """Stop SGLang and its processes."""
        with suppress(Exception):  # it may be half dead
            self._engine.shutdown()

    # Requests
    async def generate(self, submit: Submit) -> AsyncIterator[Delta]:
        """Continue a prompt. Cancelling the task aborts the request."""
        sampling = submit.sampling
        prompt = self._prompt(submit)
        self._check_ids(sampling.stop_token_ids, "stop_token_ids")
        shown = [s for s in self._special_texts if any(s in mark for mark in submit.marks)]
        room = self._room(len(prompt), sampling.max_tokens, sampling.whole)
        params = sampling_params(sampling, room, special=bool(shown))
        hidden = [s for s in self._special_texts if s not in shown] if shown else []
        maker = DeltaMaker(sampling, self._text_of, hidden, prompt=prompt)
        async with self._run() as rid:
            try:
                outputs = await self._engine.async_generate(
                    input_ids=prompt,
                    sampling_params=params,
                    return_logprob=sampling.logprobs is not None,
                    top_logprobs_num=sampling.logprobs or 0,
                    lora_path=self._adapter(submit.adapter),
                    stream=submit.stream,
                    rid=rid,
                )
                if not submit.stream:
                    if (whole := maker.delta(outputs)) is not None:
                        yield whole
                    return
                async for output in outputs:
                    if (delta := maker.delta(output)) is not None:
                        yield delta
            except (asyncio.CancelledError, GeneratorExit):
                self._manager.abort_request(rid)
                raise

    @asynccontextmanager
    async def _run(self) -> AsyncIterator[str]:
        """Count a request as running, once the engine is open. Gives its id for SGLang, whose
        errors become Penstock's.
        """
        rid = f"penstock-{next(self._rids)}"
        await self._open.wait()
        self._running.add(rid)
        self._idle.clear()
        try:
            yield rid
        except PenstockError:
            raise
        except Exception as error:
            raise _error(error) from error
        finally:
            self._running.discard(rid)
            if not self._running:
                self._idle.set()

    async def decide(self, texts: Any, questions: Any) -> tuple[list[Shares], Usage]:
        """The shares of each branch's labels, by SGLang's score call: one for all places where
        labels go on with the same tokens.
        """
        asked = msgspec.convert(questions, list[Question])
        read = tokenized(msgspec.convert(texts, RequestTexts), asked, self._encoded)
        if read.longest >= self._prompt_limit:
            what = "an input with a question"
            raise context_overflow(self._context_length, read.longest, what=what)
        places: dict[Path, list[tuple[int, Path]]] = {}
        for number, branch in enumerate(read.branches):
            for place, tokens in branch.trie.parting.items():
                places.setdefault(tokens, []).append((number, place))
        known: list[dict[Path, list[float]]] = [{} for _ in read.branches]
        async with self._run():
            for tokens, wanted in places.items():
                found = await self._engine.async_score(
                    query=read.ids,
                    items=[[*read.branches[number].stem, *place] for number, place in wanted],
                    label_token_ids=list(tokens),
                    apply_softmax=False,
                )
                for (number, place), chances in zip(wanted, found.scores, strict=True):
                    known[number][place] = [math.log(p) if p > 0 else -math.inf for p in chances]
        each = [shares(branch.trie, one) for branch, one in zip(read.branches, known, strict=True)]
        return each, Usage(read.size)

    def _encoded(self, texts: list[str], special_tokens: bool) -> list[list[int]]:
        return [list(self._tokenizer.encode(t, add_special_tokens=special_tokens)) for t in texts]

    async def embed(self, texts: list[Any], dimensions: int | None) -> Embeddings:
        if not all(isinstance(text, str) for text in texts):
            raise UnsupportedError(
                "the sglang engine embeds texts, no lists of token ids", param="input"
            )
        try:
            answers = await self._engine.async_encode(prompt=texts, dimensions=dimensions)
        except Exception as error:
            raise _error(error) from error
        tokens = sum(answer["meta_info"]["prompt_tokens"] for answer in answers)
        return Embeddings(
            [list(map(float, answer["embedding"])) for answer in answers], Usage(tokens)
        )

    async def tokenize(self, text: str) -> list[int]:
        """Ids of a text, none added."""
        return self._encoded([text], special_tokens=False)[0]

    async def encoded(self, text: str, special_tokens: bool, names: bool) -> Tokens:
        """Ids of a text, with the text of each if `names` are wanted."""
        (ids,) = self._encoded([text], special_tokens)
        return Tokens(ids, list(map(self._text_of, ids)) if names else None)

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        self._check_ids(token_ids, "tokens")
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True))

    # Adapters
    async def add_adapter(self, name: str, path: str) -> None:
        """Load an adapter. An earlier one of the same name leaves once its requests have ended;
        SGLang's cache keeps the two apart.
        """
        loaded = f"{name}#{next(self._names)}"
        answer = await self._engine.async_load_lora_adapter(lora_name=loaded, lora_path=path)
        if not answer.success:
            reason = " ".join((answer.error_message or "no reason given").split())
            raise ModelNotFoundError(f"adapter '{name}' cannot be loaded: {reason}", param="model")
        replaced, self._adapters[name] = self._adapters.get(name), loaded
        if replaced is not None:
            await self._unload(replaced)

    async def remove_adapter(self, name: str) -> None:
        loaded = self._adapters.pop(name, None)
        if loaded is not None:
            await self._unload(loaded)

    async def _unload(self, loaded: str) -> None:
        answer = await self._engine.async_unload_lora_adapter(lora_name=loaded)
        if not answer.success:
            raise EngineError(f"the adapter could not be unloaded: {answer.error_message}")

    # Control
    async def ping(self) -> None:
        """Return if the scheduler answers."""
        await self._manager.get_internal_state()

    async def metrics(self) -> dict[str, float]:
        """Sums over SGLang's data-parallel ranks; the fullest cache."""
        loads = await self._manager.get_loads()
        return {
            "requests_running": sum(load.num_running_reqs for load in loads),
            "requests_waiting": sum(load.num_waiting_reqs for load in loads),
            "kv_cache_usage": max((load.token_usage for load in loads), default=0.0),
        }

    async def reset_prefix_cache(self) -> None:
        answer = await self._manager.flush_cache()
        if not answer.success:
            raise EngineError(
                f"SGLang did not reset its prefix cache: {answer.message or 'requests use it'}"
            )

    async def sleep(self, tags: list[str]) -> None:
        """Free what the tags name. SGLang can do that only while it is idle."""
        if self._kept and self._running:
            raise EngineError(
                "requests are held where they are by a pause; resume before putting the engine to"
                " sleep"
            )
        async with self._closed():
            await self._idle.wait()
            await self._manager.release_memory_occupation(
                ReleaseMemoryOccupationReqInput(tags=tags), None
            )
        self._freed = tags

    async def wakeup(self) -> None:
        await self._manager.resume_memory_occupation(
            ResumeMemoryOccupationReqInput(tags=self._freed), None
        )
        self._open.set()

    async def pause(self, mode: str) -> None:
        async with self._closed():
            if mode == "wait":
                await self._idle.wait()
            else:
                await self._hold("in_place" if mode == "keep" else "abort")
        if mode != "wait":
            self._kept = mode == "keep"

    async def _hold(self, mode: str) -> None:
        try:
            await self._manager.pause_generation(PauseGenerationReqInput(mode=mode))
        except BaseException:
            if not self._kept:  # by an earlier pause
                await self._manager.continue_generation(ContinueGenerationReqInput())
            raise

    @asynccontextmanager
    async def _closed(self) -> AsyncIterator[None]:
        """Let no request in from now on. If what is to follow fails, it is as before."""
        was_open = self._open.is_set()
        self._open.clear()
        try:
            yield
        except BaseException:
            if was_open:
                self._open.set()
            raise

    async def resume(self) -> None:
        await self._manager.continue_generation(ContinueGenerationReqInput())
        self._kept = False
        self._open.set()

    async def start_profile(self) -> None:
        """Begin a profile, in the folder that SGLANG_TORCH_PROFILER_DIR names."""
        await self._manager.start_profile()

    async def stop_profile(self) -> None:
        await self._manager.stop_profile()

    async def collective_rpc(self, method: str, kwargs: dict[str, Any]) -> None:
        """Call a method of every scheduler, in a thread: SGLang blocks until they answer."""
        try:
            await asyncio.to_thread(self._engine.collective_rpc, method, **kwargs)
        except AssertionError as error:
            raise EngineError(f"{method}: {error}") from error

    # Prompts
    def _prompt(self, submit: Submit) -> list[int]:
        if isinstance(submit.prompt, str):
            return self._encoded([submit.prompt], submit.special_tokens)[0]
        self._check_ids(submit.prompt, "prompt")
        return submit.prompt

    def _room(self, length: int, max_tokens: int | None, whole: bool) -> int:
        if length >= self._prompt_limit:
            raise context_overflow(self._context_length, length, max_tokens)
        return most_new_tokens(length, max_tokens, self._context_length, whole)

    def _check_ids(self, ids: Sequence[int], param: str) -> None:
        check_id_range(ids, self._vocabulary, param)

    def _adapter(self, name: str | None) -> str | None:
        if name is None:
            return None
        try:
            return self._adapters[name]
        except KeyError:
            raise ModelNotFoundError(f"no adapter '{name}' is loaded", param="model") from None

    def _text_of(self, token_id: int) -> str:
        return str(self._tokenizer.decode([token_id]))


def _error(error: Exception) -> PenstockError:
    """Maps what SGLang raises for a request: `ValueError` for a faulty request, FastAPI's
    exception for an HTTP status.
    """
    status = getattr(error, "status_code", None)
    if isinstance(status, int):
        return error_of(status, str(getattr(error, "detail", "") or error))
    text = " ".join(str(error).split())
    if isinstance(error, ValueError):
        return RequestError(f"SGLang refuses the request: {text}")
    return EngineError(f"SGLang failed: {text}")
