"""What a replica answers to its runtime's own ingresses, beside the public API."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.responses import Response

from penstock.errors import RequestError, UnsupportedError
from penstock.serve.api.exchange import Exchange
from penstock.serve.api.sse import EventStream
from penstock.serve.replicas.cache_messages import ChangeStream
from penstock.serve.rpc.calls import GENERATING, RETURNING, CallFramer, pack


async def cached(exchange: Exchange) -> Response:
    """What the engine has cached, in the names that requests brought, and what changes of it."""
    target = await exchange.target("")
    blocks = target.handle.server.engine.cached_blocks  # type: ignore[attr-defined]  # it is in this process
    if blocks is None:
        raise UnsupportedError(
            f"the {target.handle.engine_name} engine does not tell what it has cached"
        )
    return ChangeStream(exchange, blocks.changes())


async def call(exchange: Exchange) -> Response:
    """Call a task of the engine in the neutral types."""
    task = exchange.request.path_params["task"]
    body = await exchange.read()
    target = await exchange.target("")
    try:
        if task in GENERATING:
            request: Any = msgspec.msgpack.decode(body, type=GENERATING[task])
            return EventStream(
                exchange, getattr(target.handle, task)(request), CallFramer(), n=request.n
            )
        form, _ = RETURNING[task]
        request = msgspec.msgpack.decode(body, type=form)
    except KeyError:
        raise RequestError(f"there is no task '{task[:50]}'", param="task") from None
    except msgspec.DecodeError:
        raise RequestError("the request is not of its task's form") from None
    result = await exchange.wait(getattr(target.handle, task)(request))
    return Response(pack(result), media_type="application/msgpack")
