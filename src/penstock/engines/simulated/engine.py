"""An engine without a model: deterministic answers at a speed you set, and faults on demand.

For latency studies, fault injection and fast tests. Answers depend on the prompt and the seed
alone, so two runs agree. Time passes in steps as in a continuous-batching engine: each step gives
every running request one token.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections import deque
from typing import Any, ClassVar

from penstock.config import parse_options
from penstock.engines.base import Capabilities, Stated
from penstock.engines.decisions.prompts import RequestTexts
from penstock.engines.decisions.trie import Shares
from penstock.engines.sampling import (
    StopStrings,
    check_id_range,
    check_inputs,
    most_new_tokens,
    shown_prompt,
)
from penstock.engines.simulated.answers import (
    answer_bytes,
    embeddings,
    label_shares,
    logprob,
    prompt_logprobs,
    scores,
    seeded,
)
from penstock.engines.simulated.options import COSTS_ONLY, SimulatedOptions
from penstock.engines.simulated.shared_steps import Running, SharedSteps
from penstock.engines.tasks import Batches
from penstock.engines.templates.chat_template import PLAIN, ChatTemplate
from penstock.engines.token_engine import GenerateRequest, TokenEngine
from penstock.errors import (
    EngineDeadError,
    EngineError,
    ModelNotFoundError,
)
from penstock.kv.base import make_connector
from penstock.kv.cached_blocks import PROMPT_BLOCKS, CachedBlocks
from penstock.kv.prefix_index import BLOCK_SIZE, PrefixIndex
from penstock.types import (
    ChatRequest,
    CompletionRequest,
    DecideRequest,
    Delta,
    FinishReason,
    Tokens,
    Usage,
)

_HELD: dict[str, set[str]] = {}
"""Engine → its requests whose caches wait for a decode engine."""
_VOCABULARY = 256
TEMPLATE = f"{PLAIN}{{% if tools %}}{{{{ tools | tojson }}}}\n{{% endif %}}"


class SimulatedEngine(TokenEngine):
    """Stands in for a model. Tokens are UTF-8 bytes, so text and token ids convert without loss."""

    name: ClassVar[str] = "simulated"
    costs_only: ClassVar[frozenset[str]] = COSTS_ONLY
    operations: ClassVar[frozenset[str]] = frozenset({"reset_prefix_cache"})

    def __init__(self, model_source: str = "simulated", **kwargs: Any) -> None:
        super().__init__(model_source, **kwargs)
        self.options = parse_options(SimulatedOptions, self.engine_kwargs, "engine_kwargs")
        self.deterministic = self.options.deterministic
        self.tool_call_parser = self.options.tool_call_parser
        self.reasoning_parser = self.options.reasoning_parser
        self.template = ChatTemplate(TEMPLATE)
        self.capabilities = Capabilities(
            tasks=frozenset(
                {
                    *("chat", "completions", "decide", "embeddings", "score", "rerank"),
                    *("tokenize", "detokenize"),
                }
            ),
            context_length=self.options.max_model_len,
            max_concurrency=self.options.max_num_seqs,
            structured=frozenset({"json_schema", "json_object"}),
            max_top_logprobs=5,
            adapters=True,
            prefix_caching=True,
            thoughts_first=True,
            inputs=("text",),
            vocabulary=_VOCABULARY,
            prompt_logprobs=True,
            extra=frozenset({"return_token_ids"}),
            vectors=("dense", "multi", "sparse"),
        )
        self.requests_served = 0
        self.kv_transfers = self.kv_transfer_failures = 0
        given = self.options.kv_transfer_config
        self.connector = None if given is None else make_connector(given)
        self._steps = 0
        self._prefixes = PrefixIndex(self.options.kv_cache_blocks)
        self._waiting: deque[Running] = deque()
        self._running: dict[Running, None] = {}  # in the order of their admission
        self._shared = SharedSteps(self.sharing, self.options.max_num_seqs)
        self._loop_task: asyncio.Task[None] | None = None
        self._alive = False
        self._deaths = 0
        self._served_since_start = 0

    @classmethod
    def deterministic_options(cls) -> dict[str, Any]:
        return {"deterministic": True}

    # Life
    async def start(self) -> None:
        if self._alive:
            return
        await asyncio.sleep(self.options.start_ms / 1000)
        if self.connector is not None:
            self.identity = self.connector.setup(self.site, "simulated").identity
            _HELD[self.identity.engine_id] = set()
        self._alive = True
        self.loop = asyncio.get_running_loop()
        self._served_since_start = 0
        self._shared = SharedSteps(self.sharing, self.options.max_num_seqs)

    async def stop(self) -> None:
        self._die("the simulated engine was stopped", suspects=False)

    async def check_health(self) -> None:
        if not self._alive:
            raise EngineDeadError("the simulated engine is not running", suspects=False)

    # Requests
    async def continue_prompt(self, request: GenerateRequest) -> Batches:
        await self.check_health()
        item = self._admit(request)
        if self.cached_blocks is not None and (names := PROMPT_BLOCKS.get()):
            self.cached_blocks.asked(names, item.blocks)
        options = self.options
        takes_time = (
            options.time_to_first_token_ms
            or options.time_per_token_ms
            or options.prefill_ms_per_token
        )
        if not (takes_time or request.stream or item.hangs or item.kills):
            self._prefill(item)
            while (delta := self._emit(item)) is None or delta.finish_reason is None:
                pass
            yield [delta]
            return
        now = asyncio.get_running_loop().time()
        self._shared.came(id(item), now, batch=request.batch)
        self._shared.queue_of(item, self._waiting).append(item)
        if self._loop_task is None or self._loop_task.done():
            self._loop_task = asyncio.create_task(self._step_loop())
        reason: FinishReason | None = None
        try:
            while reason is None:
                batch = await item.mailbox.take()
                reason = batch[-1].finish_reason
                yield batch
        finally:
            self._forget(item)

    def stated(self) -> Stated:
        able = self.capabilities
        return Stated(_VOCABULARY, able.tasks, able.max_top_logprobs, able.inputs)

    async def answer(self, task: str, request: Any) -> Any:
        match task:
            case "tokenize":
                return list(request.encode())
            case "detokenize":
                check_id_range(request, _VOCABULARY, "tokens")
                return bytes(request).decode(errors="replace")
            case "embeddings" | "score" | "rerank":
                if task == "embeddings":
                    check_inputs(request.inputs, self.name)
                await self.check_health()
                return (
                    embeddings(request, self.options.seed, self.options.max_model_len)
                    if task == "embeddings"
                    else scores(request)
                )
        return await super().answer(task, request)

    async def label_shares(
        self, texts: RequestTexts, request: DecideRequest
    ) -> tuple[list[Shares], Usage]:
        await self.check_health()
        return label_shares(texts, request, self.options.seed)

    async def encoded(self, text: str, special_tokens: bool, names: bool) -> Tokens:
        ids = list(text.encode())
        each = [bytes([one]).decode(errors="replace") for one in ids]
        return Tokens(ids, each if names else None)

    async def control(self, operation: str, **options: Any) -> Any:
        if operation == "reset_prefix_cache":
            return self._forget_prefixes()
        return await super().control(operation, **options)

    async def resolve_lora(self, name: str, path: str) -> None:
        self.adapters[name] = path

    async def remove_lora(self, name: str) -> None:
        if self.adapters.pop(name, None) is None:
            raise ModelNotFoundError(f"no adapter '{name}' is loaded", param="model")

    async def prompt_ids(self, request: ChatRequest | CompletionRequest) -> list[int] | None:
        if isinstance(request, ChatRequest):
            return list(self._rendered(request).encode())
        return list(request.prompt.encode()) if isinstance(request.prompt, str) else request.prompt

    def tell_cached_blocks(self) -> None:
        self.cached_blocks = CachedBlocks()

    async def metrics(self) -> dict[str, float]:
        return {
            "steps": self._steps,
            "requests_running": len(self._running),
            "requests_waiting": len(self._waiting) + len(self._shared.waiting),
            **self._shared.metrics(),
            **(
                {
                    "kv_transfers": self.kv_transfers,
                    "kv_transfer_failures": self.kv_transfer_failures,
                }
                if self.connector is not None
                else {}
            ),
        }

    @property
    def running(self) -> int:
        """Requests that hold a slot or wait for one."""
        return len(self._running) + len(self._waiting) + len(self._shared.waiting)

    @property
    def shares_steps(self) -> bool:
        return True

    # One request
    def _admit(self, request: GenerateRequest) -> Running:
        sampling, options = request.sampling, self.options
        prompt = (
            list(request.prompt.encode()) if isinstance(request.prompt, str) else request.prompt
        )
        limit = most_new_tokens(
            len(prompt), sampling.max_tokens, options.max_model_len, sampling.whole
        )
        check_id_range(prompt, _VOCABULARY, "prompt")
        check_id_range(sampling.stop_token_ids, _VOCABULARY, "stop_token_ids")
        draw = seeded(options.seed, "fault", prompt)
        if draw.random() < options.error_rate:
            raise EngineError("simulated fault")
        answer = answer_bytes(request, prompt, options.seed, options.output_tokens)
        if sampling.ignore_eos or sampling.min_tokens > len(answer):
            wanted = limit if sampling.ignore_eos else sampling.min_tokens
            answer = (answer * (wanted // max(len(answer), 1) + 1))[:wanted]
        by_length = sampling.ignore_eos or len(answer) > limit
        item = Running(request, prompt, answer[:limit], "length" if by_length else "stop")
        item.slowness = options.slow_factor if draw.random() < options.slow_rate else 1.0
        item.hangs = draw.random() < options.hang_rate
        item.kills = options.die_on is not None and options.die_on.encode() in bytes(prompt)
        return item

    def _prefill(self, item: Running) -> float:
        """Look the prompt up in the prefix cache. Returns the milliseconds to the first token."""
        item.cached = min(
            self._prefixes.match(item.blocks) * BLOCK_SIZE, max(item.prompt_tokens - 1, 0)
        )
        gone = self._prefixes.insert(item.blocks)
        if self.cached_blocks is not None:
            self.cached_blocks.stored(item.blocks)
            self.cached_blocks.removed(gone)
        options = self.options
        if item.kv.get("do_remote_prefill") and self._fetched(item):
            return options.kv_transfer_ms
        return options.time_to_first_token_ms + options.prefill_ms_per_token * (
            item.prompt_tokens - item.cached
        )

    def _fetched(self, item: Running) -> bool:
        """Whether the prompt's cache was to be had from the engine that computed it. Then that
        engine is rid of it.
        """
        item.kv = {**item.kv, "do_remote_prefill": False}
        if item.kv.get("remote_process") == os.getpid():
            held = _HELD.get(item.kv.get("remote_engine_id", ""), set())
            if item.kv.get("remote_request_id") not in held:
                self.kv_transfer_failures += 1
                return False
            held.discard(item.kv["remote_request_id"])
        self.kv_transfers += 1
        return True

    def _hold(self, item: Running) -> dict[str, Any] | None:
        """Keep a prompt's cache for another engine, and tell where it is."""
        if self.identity is None or not item.kv.get("do_remote_decode"):
            return None
        request_id = uuid.uuid4().hex
        _HELD[self.identity.engine_id].add(request_id)
        return {
            "do_remote_prefill": True,
            "do_remote_decode": False,
            "remote_engine_id": self.identity.engine_id,
            "remote_request_id": request_id,
            "remote_process": os.getpid(),
        }

    def _emit(self, item: Running) -> Delta | None:
        """One token of progress; None where there is nothing to show."""
        sampling = item.request.sampling
        text = item.stop.push(item.texts[item.emitted])
        ids: tuple[int, ...] = (item.answer[item.emitted],)
        item.emitted += 1
        done = item.stop.stopped or item.emitted >= len(item.answer)
        if not item.request.stream:
            if not done:
                return None
            whole = StopStrings(sampling.stop)
            ids = tuple(item.answer[: item.emitted])
            text = whole.push(bytes(ids).decode(errors="replace"))
            if not whole.stopped:
                text += whole.flush()
        elif done and not item.stop.stopped:
            text += item.stop.flush()
        top = sampling.logprobs
        begun = item.request.stream and item.emitted > 1
        reason: FinishReason | None = None
        usage = None if begun else Usage(item.prompt_tokens, 0, item.cached)
        if done:
            self._finished()
            reason = "stop" if item.stop.stopped else item.reason
            usage = Usage(item.prompt_tokens, item.emitted, item.cached)
        return Delta(
            text=text,
            token_ids=ids,
            logprobs=None if top is None else tuple(logprob(token, top) for token in ids),
            finish_reason=reason,
            usage=usage,
            stop=item.stop.found,
            kv_transfer_params=self._hold(item) if done else None,
            prompt_logprobs=None if begun else prompt_logprobs(item.prompt, sampling),
            prompt_token_ids=None if begun else shown_prompt(sampling, item.prompt),
        )

    def _finished(self) -> None:
        self.requests_served += 1
        self._served_since_start += 1
        options = self.options
        if (
            options.die_after
            and self._deaths < options.die_times
            and self._served_since_start >= options.die_after
        ):
            self._deaths += 1
            self._die("the simulated engine died, as it was told to")

    # Time
    async def _step_loop(self) -> None:
        clock = asyncio.get_running_loop().time
        shared = self._shared
        while self._running or self._waiting or shared.waiting:
            for item in shared.admitted(clock(), self._running, self._waiting):
                if item.ready_at is None:
                    item.ready_at = clock() + self._prefill(item) * item.slowness / 1000
            slowdown = 1 + self.options.batch_slowdown * (len(self._running) - 1)
            step = self.options.time_per_token_ms / 1000 * slowdown
            due = [(i, i.ready_at or 0.0) for i in self._running if not i.hangs]
            ready = [i for i, at in due if at <= clock()]
            if not ready:
                upcoming = [at for _, at in due]
                # All that run hang: look again now and then, as a caller may give up or a new
                # request come.
                pause = shared.pause or 0.01
                await asyncio.sleep(max(min(upcoming) - clock(), 0) if upcoming else pause)
                continue
            if step:
                began = clock()
                await asyncio.sleep(step)
                self._step(ready, step, clock())
                shared.stepped(began, clock(), ready)
            else:
                for _ in range(self.options.steps_per_turn):
                    self._step(ready, step, clock())
                await asyncio.sleep(0)

    def _step(self, ready: list[Running], seconds: float, now: float) -> None:
        self._steps += 1
        for item in ready:
            if item not in self._running:
                continue  # it has finished, or its caller went away
            if item.slowness > 1:
                item.ready_at = now + seconds * (item.slowness - 1)
            if item.kills:
                self._die("the simulated engine died of a request, as it was told to")
                return
            delta = self._emit(item)
            if delta is not None:
                item.mailbox.put(delta)
                if delta.finish_reason is not None:
                    self._forget(item)

    def _forget(self, item: Running) -> None:
        self._shared.gone(id(item))
        if item in self._running:
            del self._running[item]
        elif item in (waiting := self._shared.queue_of(item, self._waiting)):
            waiting.remove(item)
            if item.kv.get("do_remote_prefill"):
                self._fetched(item)  # else it would stay there for ever

    def _forget_prefixes(self) -> None:
        self._prefixes.clear()
        if self.cached_blocks is not None:
            self.cached_blocks.clear()

    def _die(self, why: str, *, suspects: bool = True) -> None:
        self._alive = False
        self.loop = None
        if self.identity is not None:
            _HELD.pop(self.identity.engine_id, None)
            self.identity = None
        for item in [*self._running, *self._waiting, *self._shared.waiting]:
            item.mailbox.fail(EngineDeadError(why, suspects=suspects))
        self._running.clear()
        self._waiting.clear()
        self._shared.waiting.clear()
        self._forget_prefixes()
        if suspects:
            self.on_death()
