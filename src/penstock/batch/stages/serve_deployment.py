"""Sends rows to a served deployment, by its name: to a model as requests of OpenAI's API, or to any
method of another deployment.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import inspect
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, ClassVar

import msgspec

from penstock.batch.pipeline.pipeline import Attempts, Tries
from penstock.batch.rows.repair import collect
from penstock.batch.stages.base import StatefulStage
from penstock.batch.stages.ray_columns import of_worker
from penstock.engines.base import LLMEngine
from penstock.engines.quarantine import digest_of
from penstock.engines.registry import DEFAULT_APP, engines
from penstock.engines.side_by_side import begin, end_all
from penstock.engines.supervisor import supervisor_of
from penstock.engines.tasks import Tasks
from penstock.errors import EngineTimeoutError, RequestError, UserCodeError, nearest
from penstock.openai import responses
from penstock.openai.embeddings_api import EmbeddingBody
from penstock.openai.parameters.body import parse_body
from penstock.openai.requests import ChatBody, CompletionBody

METHODS = ("chat", "completions", "embeddings")
MOST_IN_FLIGHT = 256
"""Bounds the rows that wait: the deployment itself decides how many it works on."""


class DeploymentRequests:
    """Asks the engine or handle called `deployment_name` in `app_name`, which its owner starts and
    stops. An engine that dies is restarted and asked again; a handle does that itself.

    A row has a `method`, its `request_kwargs` (the body of the request) and, if `dtype_mapping` is
    given, a `dtype`: the name of the class that checks the request. The answer's fields become
    columns. A method other than `METHODS` is the deployment's own: it gets the request, as an
    object of that class or a dict, and returns or yields an answer. With `rows_per_call` above 1 it
    gets a list of up to that many requests, and returns a list of answers.
    """

    def __init__(
        self,
        deployment_name: str,
        app_name: str = DEFAULT_APP,
        *,
        dtype_mapping: Mapping[str, Any] | None = None,
        request_timeout_s: float | None = None,
        most: int | None = None,
        rows_per_call: int = 1,
        ray_columns: bool = False,
    ) -> None:
        self.most_in_flight = most or MOST_IN_FLIGHT
        self._rows_per_call = rows_per_call
        self._groups: dict[str, Group] = {}
        self._more = of_worker() if ray_columns else {}
        self._names = (deployment_name, app_name)
        self._types = dict(dtype_mapping or {})
        self._timeout = request_timeout_s
        self._stack = contextlib.AsyncExitStack()
        self._handle: Any = None
        self._deployment: Any = None
        self._attempts: Attempts | None = None
        self.ending = False

    async def start(self) -> None:
        """Find the deployment. Raises `ModelNotFoundError`."""
        self._handle = engines().get(*self._names)
        # A served model has the methods of its deployment too.
        self._deployment = self._handle
        if isinstance(self._handle, Tasks):
            self._deployment = getattr(self._handle, "deployment", self._handle)
        if isinstance(self._handle, LLMEngine):
            supervisor = supervisor_of(self._handle)
            await self._stack.enter_async_context(supervisor.running())
            self._attempts = Attempts(supervisor, lambda: not self.ending)

    async def stop(self) -> None:
        for group in self._groups.values():
            await group.stop()
        await self._stack.aclose()

    async def process(self, row: dict[str, Any]) -> dict[str, Any]:
        """The fields of the answer, and `request_id` and `time_taken` (seconds)."""
        method, kwargs = row.get("method"), row.get("request_kwargs")
        direct = method in METHODS and isinstance(self._handle, Tasks)
        call = None if direct else self._method(method)
        if not isinstance(kwargs, Mapping):
            raise RequestError(
                "the row has no dict in column 'request_kwargs'", param="request_kwargs"
            )
        request = self._request(row.get("dtype"), kwargs)
        body = {str(key): value for key, value in _fields(request).items() if value is not None}
        name = uuid.uuid4().hex
        began = time.perf_counter()
        try:
            async with asyncio.timeout(self._timeout):
                ask = partial(self._answer, str(method), body, name)
                if call is not None:
                    answer = columns_of(await call(request))
                elif self._attempts is None:
                    answer = await ask()
                else:
                    key = partial(digest_of, (method, body))
                    answer = await self._attempts.answer(ask, None, Tries(), key)
        except TimeoutError:
            raise EngineTimeoutError(f"no answer within {self._timeout} s") from None
        taken = time.perf_counter() - began
        return {**answer, "request_id": name, "time_taken": taken, **self._more}

    def _request(self, dtype: str | None, kwargs: Mapping[str, Any]) -> Any:
        """The request: an object of the class that `dtype` names, or the mapping itself."""
        if dtype is None:
            return kwargs
        if dtype not in self._types:
            hint = nearest(str(dtype), self._types) or "The processor has no dtype_mapping"
            raise RequestError(f"unknown dtype '{dtype}'. {hint}", param="dtype")
        try:
            return self._types[dtype](**kwargs)
        except Exception as error:
            raise RequestError(
                f"request_kwargs are no {dtype}: {error}", param="request_kwargs"
            ) from error

    def _method(self, name: object) -> Callable[[Any], Awaitable[Any]]:
        """The deployment's method of that name. Raises `RequestError`."""
        found = None
        if isinstance(name, str) and (name == "__call__" or not name.startswith("_")):
            found = getattr(self._deployment, name, None)
        if not callable(found):
            of_model = METHODS if isinstance(self._handle, Tasks) else ()
            known = [*of_model, *_public(self._deployment)]
            hint = nearest(str(name), known)
            raise RequestError(f"unknown method {name!r}. {hint}", param="method")
        if self._rows_per_call == 1:
            return partial(answer_of, found)
        if name not in self._groups:
            self._groups[str(name)] = Group(partial(answer_of, found), self._rows_per_call)
        return self._groups[str(name)].ask

    async def _answer(self, method: str, body: dict[str, Any], name: str) -> dict[str, Any]:
        served = getattr(self._handle, "model_id", None)
        model = body.get("model") or served or self._names[0]
        adapter = adapter_of(model, served) if isinstance(model, str) else None
        created = int(time.time())
        if method == "embeddings":
            embedding = parse_body(EmbeddingBody, body)
            vectors = await self._handle.embeddings(embedding.request(request_id=name))
            base64 = embedding.encoding_format == "base64"
            return responses.embedding_list(vectors, model=model, base64=base64)
        if method == "chat":
            asked = parse_body(ChatBody, body)
            chat = asked.request(adapter=adapter, request_id=name, stream=False)
            answers = await collect(self._handle, chat, responses.Answers)
            return responses.chat_completion(
                answers,
                id=f"chatcmpl-{name}",
                created=created,
                model=model,
                form=asked.tool_form,
            )
        completion = parse_body(CompletionBody, body)
        plain = completion.requests(adapter=adapter, request_id=name, stream=False)
        several = await asyncio.gather(
            *(collect(self._handle, one, responses.Answers) for one in plain)
        )
        return responses.completion(
            several, id=f"cmpl-{name}", created=created, model=model, best=completion.best
        )


def _fields(made: Any) -> Mapping[str, Any]:
    """The fields set in a request object: a mapping, a pydantic model, a struct, or any object."""
    if isinstance(made, Mapping):
        return made
    if hasattr(made, "model_dump"):
        return dict(made.model_dump(exclude_unset=True))
    if isinstance(made, msgspec.Struct):
        return msgspec.structs.asdict(made)
    return dict(vars(made))


class Group:
    """Groups the requests of one turn of the event loop into calls with at most `most` requests."""

    def __init__(self, call: Callable[[list[Any]], Awaitable[Any]], most: int) -> None:
        self._call = call
        self._most = most
        self._waiting: list[tuple[Any, asyncio.Future[Any]]] = []
        self._calls: set[asyncio.Task[None]] = set()

    async def ask(self, request: Any) -> Any:
        """The answer to one request."""
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.call_soon(self._send)
        answer: asyncio.Future[Any] = loop.create_future()
        self._waiting.append((request, answer))
        if len(self._waiting) == self._most:
            self._send()
        return await answer

    async def stop(self) -> None:
        """Cancel the calls under way, for which nobody waits any more."""
        await end_all(self._calls)

    def _send(self) -> None:
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            begin(self._ask(waiting), self._calls)

    async def _ask(self, waiting: list[tuple[Any, asyncio.Future[Any]]]) -> None:
        try:
            found = await self._call([request for request, _ in waiting])
            answers = list(found)
            if len(answers) != len(waiting):
                raise UserCodeError(f"{len(answers)} answers to {len(waiting)} requests")
        except Exception as error:
            for _, answer in waiting:
                if not answer.done():
                    answer.set_exception(error)
            return
        for (_, answer), one in zip(waiting, answers, strict=True):
            if not answer.done():
                answer.set_result(one)


def adapter_of(name: str, model_id: str | None) -> str | None:
    """The adapter in "base:adapter". The base's own name may have colons, too."""
    if name == model_id:
        return None
    base = f"{model_id}:"
    return name[len(base) :] if name.startswith(base) else name.partition(":")[2] or None


async def answer_of(method: Callable[[Any], Any], request: Any) -> Any:
    """The answer of a method, which may be plain, async, or a generator whose first item it is."""
    result = method(request)
    if inspect.isawaitable(result):
        result = await result
    if inspect.isasyncgen(result):
        async with contextlib.aclosing(result):
            return await anext(result)
    return next(result) if inspect.isgenerator(result) else result


def columns_of(answer: Any) -> Mapping[str, Any]:
    """The fields of an answer. Raises `UserCodeError` if it has none."""
    if isinstance(answer, Mapping):
        return answer
    if hasattr(answer, "model_dump"):
        return dict(answer.model_dump())
    if isinstance(answer, msgspec.Struct):
        return msgspec.structs.asdict(answer)
    if dataclasses.is_dataclass(answer) and not isinstance(answer, type):
        return dataclasses.asdict(answer)
    raise UserCodeError(f"the method gave a {type(answer).__name__}, no dict and no object")


def _public(deployment: object) -> list[str]:
    return [name for name in dir(deployment) if not name.startswith("_")]


class ServeDeploymentStage(StatefulStage):
    """A row to a served model."""

    fn = DeploymentRequests
    _required: ClassVar[Mapping[str, str]] = {
        "method": f"What to call: {', '.join(METHODS)}, or any other method of the deployment.",
        "request_kwargs": "The body of the request, as a dict.",
    }
    _optional: ClassVar[Mapping[str, str]] = {
        "dtype": "The name in `dtype_mapping` of the class that checks the request."
    }
