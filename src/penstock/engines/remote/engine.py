"""`RemoteEngine`: an engine whose model runs behind another server's HTTP API."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, aclosing, contextmanager, suppress
from functools import partial
from typing import Any, ClassVar, TypeVar
from urllib.parse import quote

import msgspec

from penstock.balance.policies.base import ANYWHERE, RouteRequest
from penstock.balance.policies.table import make_policy
from penstock.balance.pool import Failover
from penstock.engines.base import Capabilities, LLMEngine
from penstock.engines.remote import answers
from penstock.engines.remote.discovery import AUTO, Found, discover
from penstock.engines.remote.options import COSTS_ONLY, parse_remote_options
from penstock.engines.remote.refusals import as_refusal, is_no_route
from penstock.engines.remote.requests import (
    PATHS,
    chat_body,
    completion_body,
    in_dialect,
    task_body,
)
from penstock.engines.remote.results import read_task
from penstock.engines.remote.stream import AnswerStream, StreamReader, charge
from penstock.engines.remote.upstreams import Upstream, Upstreams
from penstock.engines.sampling import check_inputs, check_sampling, check_vectors
from penstock.engines.side_by_side import end_all
from penstock.engines.tasks import Batches, task_of
from penstock.errors import (
    ConfigError,
    EngineDeadError,
    EngineStartError,
    EngineTimeoutError,
    ModelNotFoundError,
    PenstockError,
    RequestError,
    UpstreamError,
    class_and_text,
    nearest,
)
from penstock.http.client import multipart
from penstock.http.retries import Retries, is_throttling
from penstock.llm_config.batch import CLASS_HEADER
from penstock.types import ChatRequest, CompletionRequest

T = TypeVar("T")
Body = Callable[[Upstream], dict[str, Any] | None]
"""What makes the body of a request; None asks by GET."""
_NEEDS = {"tokens": "tokenize", "tokenizer_info": "tokenize"}
"""Tasks that a server may have that has another one."""

CHARS_A_TOKEN = 4


class RemoteEngine(LLMEngine):
    """Asks OpenAI-compatible servers. `model_source` is the model's name there, or "auto" if they
    have only one.

    Deltas carry no token ids, and `tokenize` asks the server, if it has such a route.
    """

    name: ClassVar[str] = "remote"
    costs_only: ClassVar[frozenset[str]] = COSTS_ONLY
    learns: ClassVar[bool] = True

    def __init__(self, model_source: str = AUTO, **kwargs: Any) -> None:
        super().__init__(model_source, **kwargs)
        self.options, self._servers = parse_remote_options(self.engine_kwargs)
        if model_source == AUTO and not self.options.discover:
            raise ConfigError(
                "must be named where the servers are not asked", field="model", value=model_source
            )
        self._retries = Retries(
            max_retries=self.options.max_retries,
            base_wait_s=self.options.base_retry_wait_s,
            pause=lambda error, seconds: self._running().pause(error, seconds),
        )
        self._upstreams: Upstreams | None = None
        self._found = Found(Capabilities(tasks=frozenset(), context_length=0, max_concurrency=1))
        self._answered: set[str] = set()  # tasks
        self._doubted: str | None = None
        self._learning: asyncio.Task[None] | None = None
        self._encode = msgspec.json.Encoder().encode

    # Life
    async def start(self) -> None:
        if self._upstreams is not None:
            return
        try:
            members = [
                Upstream(
                    f"{number} {server.base_url}",
                    server,
                    self.options,
                    "engine_kwargs" if self.options.base_url else f"upstreams[{number}]",
                    self.model_source,
                )
                for number, server in enumerate(self._servers)
            ]
        except ConfigError as error:
            raise EngineStartError(str(error)) from error
        upstreams = Upstreams(
            members,
            make_policy(self.options.routing),
            self.options.patience_s,
            lambda: self._retries.refused_s,
        )
        await upstreams.open()
        try:
            # A server may be busy for a while, or still load its model.
            retries = Retries(max_retries=0, base_wait_s=self.options.base_retry_wait_s)
            self._know(await retries.run(discover, self.model_source, upstreams, self.options))
            # A server that lists its models may still fail to run them.
            if self._doubted is not None:
                await upstreams.prove(self._doubted)
        except (UpstreamError, EngineTimeoutError) as error:
            await upstreams.close()
            raise EngineStartError(str(error)) from None
        except BaseException:
            await upstreams.close()
            raise
        self._upstreams = upstreams
        self.loop = asyncio.get_running_loop()

    async def stop(self) -> None:
        upstreams, self._upstreams = self._upstreams, None
        self.loop = None
        learning, self._learning = self._learning, None
        if learning is not None:
            await end_all([learning])
        if upstreams is not None:
            self._doubted = upstreams.doubted_path
            await upstreams.close()

    async def check_health(self) -> None:
        self._running().check()

    # Requests
    async def generate(self, request: ChatRequest | CompletionRequest) -> Batches:
        def body(upstream: Upstream) -> dict[str, Any]:
            model = self._model(upstream, request.adapter)
            given = (
                chat_body(self._cut(request), model, self.options.max_tokens_field)
                if isinstance(request, ChatRequest)
                else completion_body(request, model)
            )
            return in_dialect(upstream.dialect, given) | self.options.extra_body

        task = task_of(request)
        path = PATHS[task]
        upstreams = self._running()
        self._check(task, request)
        if not request.stream:
            read = partial(answers.whole, n=request.n)
            route = upstreams.route_of(request)
            yield await self._call(task, path, body, read, request, route=route)
            return
        with _refusals():
            stream = await self._first(
                upstreams,
                task,
                path,
                lambda upstream: self._open(upstreams, upstream, path, body(upstream), request),
                upstreams.route_of(request),
            )
            async with aclosing(stream):
                async for batch in stream.batches():
                    yield batch

    async def answer(self, task: str, request: Any) -> Any:
        def body(upstream: Upstream) -> dict[str, Any]:
            return {"model": self._model(upstream), **task_body(task, request, upstream.dialect)}

        path, file = PATHS[task], None
        if task == "embeddings":
            check_inputs(request.inputs, self.name)
            check_vectors(request.vectors, self.capabilities, self.name)
        if task == "tokenizer_info":
            read = partial(read_task, task, None)
            return await self._call(task, path, lambda _: None, read)
        if task == "transcriptions":
            file = request.audio
            path = path if request.task == "transcribe" else "/audio/translations"
        read = partial(read_task, task, request)
        return await self._call(task, path, body, read, request, file=file)

    # How
    async def _open(
        self,
        upstreams: Upstreams,
        upstream: Upstream,
        path: str,
        body: dict[str, Any],
        request: ChatRequest | CompletionRequest,
    ) -> AnswerStream:
        """A stream whose first deltas have come."""
        if self.options.stream_usage:
            body["stream_options"] = {"include_usage": True}
        data = self._encoded(body)
        to = upstream.to(path)
        async with AsyncExitStack() as held:
            held.enter_context(upstreams.watch(upstream, path, data))
            tokens = self._estimate(data, request.sampling.max_tokens)
            pieces = await held.enter_async_context(
                upstream.client.stream(
                    to,
                    upstream.limiter,
                    data=data,
                    headers=_headers(request),
                    tokens=tokens,
                )
            )
            forward = isinstance(request, ChatRequest) and request.forward_chunks
            reader = StreamReader(request.n, to.shown, forward=forward)
            stream = AnswerStream(held, pieces, reader, upstream, tokens)
            await stream.begin()
            upstreams.answered(upstream)
            stream.held = held.pop_all()
            return stream

    async def _call(
        self,
        task: str,
        path: str,
        body: Body,
        read: Callable[[bytes, str], T],
        request: Any = None,
        *,
        file: bytes | None = None,
        route: RouteRequest = ANYWHERE,
    ) -> T:
        if _NEEDS.get(task, task) not in self.capabilities.tasks:
            raise self._unsupported(task)
        upstreams = self._running()

        async def ask(upstream: Upstream) -> T:
            given, tokens = body(upstream), 0.0
            data: Any = None
            if given is None:
                model = quote(self._model(upstream), safe="")
                to = upstream.to(f"{path}?model={model}", "GET")
            else:
                to = upstream.to(path)
                data = (
                    self._encoded(given)
                    if file is None
                    else multipart({**given, "file": {"content": file, "filename": "audio"}})
                )
                if file is None:
                    tokens = self._estimate(data, given.get(self.options.max_tokens_field))
            with upstreams.watch(upstream, path, data if file is None else file):
                reply = await upstream.client.send(
                    to,
                    upstream.limiter,
                    data=data,
                    headers=_headers(request),
                    tokens=tokens,
                )
                try:
                    result = read(reply.body, to.shown)
                except UpstreamError as error:
                    if is_throttling(error):
                        upstream.limiter.refused()
                    raise
            if tokens:
                first = result[0] if isinstance(result, list) and result else result
                charge(upstream, first, tokens)
            return result

        with _refusals():
            return await self._first(upstreams, task, path, ask, route)

    async def _first(
        self,
        upstreams: Upstreams,
        task: str,
        path: str,
        ask: Callable[[Upstream], Awaitable[T]],
        route: RouteRequest,
    ) -> T:
        """The first success of the healthy servers in turn, and again after a pause."""

        async def sweep() -> T:
            failover = Failover(upstreams, route)
            while True:
                upstream = await failover.next()
                try:
                    result = await ask(upstream)
                    upstreams.policy.sent(route, upstream.id)
                    return result
                except (UpstreamError, EngineTimeoutError) as error:
                    if isinstance(error, UpstreamError) and is_no_route(error):
                        raise await self._without_route(
                            upstreams, upstream, task, path, error
                        ) from None
                    if not (error.retryable and failover.has_other):
                        raise

        result = await self._retries.run(sweep)
        self._answered.add(task)
        if not self._found.complete and self._learning is None:
            self._learning = asyncio.create_task(self._learn_more(upstreams))
        return result

    async def _without_route(
        self, upstreams: Upstreams, upstream: Upstream, task: str, path: str, error: UpstreamError
    ) -> PenstockError:
        """The error of a server that denies having a path. Proxies deny any path now and then, so
        the denial counts only if the path has never answered, and a probe of it fails too.
        """
        has_route = task in self._answered or await upstreams.has_route(upstream, path)
        if has_route:
            error.retryable = True
            return error
        if has_route is False:
            self.capabilities = msgspec.structs.replace(
                self.capabilities, tasks=self.capabilities.tasks - {task}
            )
        return self._unsupported(f"{task}: its server has no such route")

    async def _learn_more(self, upstreams: Upstreams) -> None:
        """Discover again: a model that loads on demand is loaded now, so its server knows more."""
        with suppress(PenstockError):
            self._know(await discover(self.model_source, upstreams, self.options))

    def _know(self, found: Found) -> None:
        self._found = found
        self.capabilities = found.capabilities
        self.adapters.update(found.adapters)

    def _running(self) -> Upstreams:
        if self._upstreams is None:
            raise EngineDeadError("the remote engine is not running", suspects=False)
        return self._upstreams

    def _check(self, task: str, request: ChatRequest | CompletionRequest) -> None:
        if task not in self.capabilities.tasks:
            raise self._unsupported(task)
        if isinstance(request, CompletionRequest) and not request.prompt:
            raise RequestError("the prompt is empty", param="prompt")
        check_sampling(request.sampling, request.n, self.capabilities, self.name)

    def _cut(self, request: ChatRequest) -> ChatRequest:
        """The chat without a limit that its context could never reach: some servers refuse it. (A
        completion without one would get a server's default of 16 tokens.)
        """
        length, wanted = self.capabilities.context_length, request.sampling.max_tokens
        if not length or (wanted or 0) < length:
            return request
        sampling = msgspec.structs.replace(request.sampling, max_tokens=None)
        return msgspec.structs.replace(request, sampling=sampling)

    def _model(self, upstream: Upstream, adapter: str | None = None) -> str:
        model = upstream.model or self.model_source
        if adapter is None:
            return model
        known = self._found.adapters
        if adapter not in known and known:
            raise ModelNotFoundError(
                f"no adapter '{adapter}'. {nearest(adapter, known)}", param="model"
            )
        return known.get(adapter, f"{model}:{adapter}")

    def _encoded(self, body: dict[str, Any]) -> bytes:
        try:
            return self._encode(body)
        except (TypeError, ValueError, OverflowError) as error:  # such as a lone surrogate
            raise RequestError(
                f"the request holds a value that cannot be sent: {class_and_text(error)}"
            ) from None

    def _estimate(self, data: bytes, max_tokens: int | None) -> float:
        if self.options.tokens_per_minute is None:
            return 0.0
        return len(data) / CHARS_A_TOKEN + (max_tokens or 0)


@contextmanager
def _refusals() -> Iterator[None]:
    """Inside, a server's refusal becomes the caller's error."""
    try:
        yield
    except UpstreamError as error:
        raise as_refusal(error) from None


def _headers(request: Any) -> dict[str, str] | None:
    """The headers of a request: its id, if it has one that can be a header, and its class."""
    request_id = getattr(request, "request_id", "")
    headers = {CLASS_HEADER: "batch"} if getattr(request, "batch", False) else {}
    if request_id and request_id.isascii() and request_id.isprintable():
        headers["X-Request-Id"] = request_id
    return headers or None
