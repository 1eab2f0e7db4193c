"""Sends rows, as requests of OpenAI's API, to a model that this process serves, by its name."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import msgspec

from penstock.batch.pipeline.pipeline import Attempts, Tries
from penstock.batch.rows.repair import collect
from penstock.batch.stages.base import StatefulStage
from penstock.engines.base import LLMEngine
from penstock.engines.quarantine import digest_of
from penstock.engines.registry import DEFAULT_APP, engines
from penstock.engines.supervisor import supervisor_of
from penstock.errors import EngineTimeoutError, RequestError, nearest
from penstock.openai import responses
from penstock.openai.requests import ChatBody, CompletionBody, EmbeddingBody, parse_body

METHODS = ("chat", "completions", "embeddings")
MOST_IN_FLIGHT = 256
"""Whoever answers has an admission of its own; this only bounds what waits for it."""


class DeploymentRequests:
    """Asks the engine or handle called `deployment_name` in `app_name`. It is started, and kept, by
    its owner. An engine that dies is started and asked again; a handle sees to that itself.

    A row has a `method`, its `request_kwargs` (the body of such a request), and where
    `dtype_mapping` is given a `dtype`: the name of the class that checks them. The answer's fields
    become columns.
    """

    def __init__(
        self,
        deployment_name: str,
        app_name: str = DEFAULT_APP,
        *,
        dtype_mapping: Mapping[str, Any] | None = None,
        request_timeout_s: float | None = None,
        most: int | None = None,
    ) -> None:
        self.most_in_flight = most or MOST_IN_FLIGHT
        self._names = (deployment_name, app_name)
        self._types = dict(dtype_mapping or {})
        self._timeout = request_timeout_s
        self._stack = contextlib.AsyncExitStack()
        self._handle: Any = None
        self._attempts: Attempts | None = None
        self.ending = False

    async def start(self) -> None:
        """Find the deployment. Raises `ModelNotFoundError`."""
        self._handle = engines().get(*self._names)
        if isinstance(self._handle, LLMEngine):
            supervisor = supervisor_of(self._handle)
            await self._stack.enter_async_context(supervisor.running())
            self._attempts = Attempts(supervisor, lambda: not self.ending)

    async def stop(self) -> None:
        await self._stack.aclose()

    async def process(self, row: dict[str, Any]) -> dict[str, Any]:
        """The fields of the answer, and `request_id` and `time_taken` (seconds)."""
        method, kwargs = row.get("method"), row.get("request_kwargs")
        if method not in METHODS:
            raise RequestError(
                f"unknown method {method!r}. {nearest(str(method), METHODS)}", param="method"
            )
        if not isinstance(kwargs, Mapping):
            raise RequestError(
                "the row has no dict in column 'request_kwargs'", param="request_kwargs"
            )
        body = self._checked(row.get("dtype"), kwargs)
        name = uuid.uuid4().hex
        began = time.perf_counter()
        try:
            async with asyncio.timeout(self._timeout):
                ask = partial(self._answer, method, body, name)
                if self._attempts is None:
                    answer = await ask()
                else:
                    key = partial(digest_of, (method, body))
                    answer = await self._attempts.answer(ask, None, Tries(), key)
        except TimeoutError:
            raise EngineTimeoutError(f"no answer within {self._timeout} s") from None
        return {**answer, "request_id": name, "time_taken": time.perf_counter() - began}

    def _checked(self, dtype: str | None, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The request's body, seen through the class that `dtype` names."""
        if dtype is not None:
            if dtype not in self._types:
                hint = nearest(str(dtype), self._types) or "The processor has no dtype_mapping"
                raise RequestError(f"unknown dtype '{dtype}'. {hint}", param="dtype")
            try:
                made = self._types[dtype](**kwargs)
            except Exception as error:
                raise RequestError(
                    f"request_kwargs are no {dtype}: {error}", param="request_kwargs"
                ) from error
            kwargs = _fields(made)
        return {str(key): value for key, value in kwargs.items() if value is not None}

    async def _answer(self, method: str, body: dict[str, Any], name: str) -> dict[str, Any]:
        model = body.get("model") or getattr(self._handle, "model_id", None) or self._names[0]
        adapter = model.partition(":")[2] or None if isinstance(model, str) else None
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


class ServeDeploymentStage(StatefulStage):
    """A row to a served model."""

    fn = DeploymentRequests
    _required: ClassVar[Mapping[str, str]] = {
        "method": f"What to call: {', '.join(METHODS)}.",
        "request_kwargs": "The body of the request, as a dict.",
    }
    _optional: ClassVar[Mapping[str, str]] = {
        "dtype": "The name in `dtype_mapping` of the class that checks the request."
    }
