"""What a replica answers to its runtime's own ingresses, beside the public API."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.responses import Response

from penstock.engines.tasks import TASKS, generated
from penstock.errors import RequestError, UnsupportedError
from penstock.serve.api.exchange import Exchange
from penstock.serve.api.sse import EventStream
from penstock.serve.replicas.cache_messages import ChangeStream
from penstock.serve.replicas.calls import CallFramer, pack


async def cached(exchange: Exchange) -> Response:
    """What the engine has cached, in the names that requests brought, and what changes of it."""
    target = await exchange.target("")
    # The handle is in this process.
    blocks = target.handle.server.engine.cached_blocks  # type: ignore[attr-defined]
    if blocks is None:
        raise UnsupportedError(
            f"the {target.handle.engine_name} engine does not tell what it has cached"
        )
    return ChangeStream(exchange, blocks.changes())


async def call(exchange: Exchange) -> Response:
    """Call a task of the engine in the neutral types."""
    name = exchange.request.path_params["task"]
    body = await exchange.read()
    target = await exchange.target("")
    task = TASKS.get(name)
    if task is None:
        raise RequestError(f"there is no task '{name[:50]}'", param="task")
    try:
        request: Any = msgspec.msgpack.decode(body, type=task.request)
    except msgspec.DecodeError:
        raise RequestError("the request is not of its task's form") from None
    if task.streams:
        return EventStream(exchange, generated(target.handle, request), CallFramer(), n=request.n)
    result = await exchange.wait(getattr(target.handle, name)(request))
    return Response(pack(result), media_type="application/msgpack")
