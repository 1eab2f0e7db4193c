"""Users' own servers in Ray's form, each in front of its model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from penstock.engines.tasks import Batches, task_of
from penstock.errors import ConfigError, PenstockError, UnsupportedError
from penstock.serve.compat.forms import (
    METHOD_OF,
    METHODS,
    asked,
    batches_of,
    result_of,
)
from penstock.serve.models.control import METHODS as CONTROLS, control_failure, parse_control
from penstock.serve.models.handle import ModelView
from penstock.serve.models.local import LocalModel
from penstock.serve.models.server import LLMServer as OwnServer
from penstock.types import ChatRequest, CompletionRequest


class FacedModel(ModelView):
    """A model as its ingresses see it, whose server in Ray's form overrides methods: requests and
    operations of these go through `server_of()`, which is asked for when the first one comes.
    """

    def __init__(self, model: LocalModel, server_of: Callable[[], Any]) -> None:
        super().__init__(model)
        self.config = model.config
        self._model = model
        self._server_of = server_of
        self._making: asyncio.Task[Any] | None = None
        self._own: frozenset[str] = frozenset()

    @property
    def server(self) -> OwnServer:
        return self._model.server

    async def start(self) -> None:
        await super().start()
        await self._face()

    async def generate(self, request: ChatRequest | CompletionRequest) -> Batches:
        task, face = task_of(request), await self._face()
        if task in self._own:
            answer = asked(face, task, request, self.model_id)
            batches = batches_of(answer, request, self._shown(face))
        else:
            batches = self._model.generate(request)
        async with aclosing(batches):
            async for batch in batches:
                yield batch

    async def answer(self, task: str, request: Any) -> Any:
        face = await self._face()
        if METHOD_OF.get(task, task) not in self._own:
            return await self._model.answer(task, request)
        given = asked(face, task, request, self.model_id)
        return await result_of(task, request, given, self._shown(face))

    async def check_before_load(self, task: str, *requests: Any) -> None:
        await self._face()
        if METHOD_OF.get(task, task) not in self._own:
            await super().check_before_load(task, *requests)

    async def control(self, method: str, options: Mapping[str, Any]) -> list[dict[str, Any]]:
        face = await self._face()
        if method not in self._own:
            return await super().control(method, options)
        parse_control(method, options)
        replica = self._model.replica_id
        try:
            result = await getattr(face, method)(**options)
        except UnsupportedError:
            raise
        except PenstockError as error:
            return [control_failure(replica, error.kind, str(error), error.param)]
        return [{"replica": replica, "ok": True, "result": result}]

    async def _face(self) -> Any:
        if self._making is None:
            self._making = asyncio.ensure_future(self._made())
        return await asyncio.shield(self._making)

    async def _made(self) -> Any:
        face = await self._server_of()
        self._own = overridden(type(face))
        return face

    def _shown(self, face: Any) -> str:
        return f"{type(face).__name__} of '{self.model_id}'"


def overridden(cls: type) -> frozenset[str]:
    """The methods for requests and operations that a user's class has of its own."""
    found = {name for name in (*METHODS, *CONTROLS) if is_foreign(cls, name)}
    if is_foreign(cls, "_run_request"):
        found.update(METHODS)
    return frozenset(found)


def is_foreign(cls: type, name: str) -> bool:
    """Whether a user's class, not one of ours, has this method."""
    owner = next((one for one in cls.__mro__ if name in vars(one)), object)
    return owner is not object and not owner.__module__.startswith("penstock.")


def check_class(cls: type, not_called: Sequence[str]) -> None:
    """Raise `ConfigError` for a user's class that overrides what nothing calls."""
    for name in not_called:
        if is_foreign(cls, name):
            raise ConfigError(
                f"{cls.__name__} overrides {name}, which nothing calls here. Override one of"
                f" {', '.join(METHODS)} instead",
                value=cls,
            )
