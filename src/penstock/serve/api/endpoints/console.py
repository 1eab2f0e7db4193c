"""The console: one page with its modules, and the facts that it shows.

The page is the same for everybody and says nothing of the server, so it is public. Its facts need a
key where there are keys.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import cache
from importlib.resources import files
from typing import Any

from msgspec import Struct
from starlette.responses import RedirectResponse, Response

import penstock
from penstock.config import Count
from penstock.serve.api.errors import without_paths
from penstock.serve.api.exchange import Exchange
from penstock.serve.api.metrics import engine_counters
from penstock.serve.models.handle import ModelHandle

PAGE = "index.html"
FILES = {
    PAGE: "text/html; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
    **{
        f"{name}.js": "text/javascript; charset=utf-8"
        for name in (
            *("main", "page", "server", "markdown", "chat", "schema", "models", "live"),
            *("requests", "batches", "files"),
        )
    },
}
"""The files of the page, and their types."""
HEADERS = {
    "content-security-policy": "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self' data:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-cache",
}


@cache
def content(name: str) -> bytes:
    """The content of one of the page's files."""
    return files("penstock.serve").joinpath("console", name).read_bytes()


def file(name: str) -> Callable[[Exchange], Awaitable[Response]]:
    """The endpoint of one of the page's files."""

    async def endpoint(exchange: Exchange) -> Response:
        body = content(name)
        if name == PAGE and exchange.ingress.settings.api_keys:
            body = body.replace(b'data-keys="none"', b'data-keys="needed"')
        return Response(body, headers={"content-type": FILES[name], **HEADERS})

    endpoint.__doc__ = f"The console's {name}."
    return endpoint


async def without_slash(exchange: Exchange) -> Response:
    """Lead to the page, whose files have addresses relative to it."""
    return RedirectResponse("../console", headers=HEADERS)


class LiveBody(Struct, kw_only=True, forbid_unknown_fields=True):
    """Body of `POST /console/live`. `after` is the number of the last request known; with `bodies`
    the server keeps what requests say from now on, and gives it, for 15 seconds.
    """

    after: Count = 0
    bodies: bool = False


async def live(exchange: Exchange, body: LiveBody) -> Response:
    """What the models do now, and the requests as they pass: an operator sees all, others with a
    key their own. A `POST`, as pages of other origins may read what a `GET` answers.
    """
    ingress = exchange.ingress
    handles = ingress.models.handles.values()
    owner = None if exchange.rank == "admin" else exchange.owner
    answer: dict[str, Any] = {
        "version": penstock.__version__,
        "operator": exchange.rank == "admin",
        "batches": ingress.settings.batches is not None,
        "control": ingress.settings.dev and exchange.rank == "admin",
        "models": await asyncio.gather(*(_model(exchange, handle) for handle in handles)),
    }
    if (traffic := ingress.traffic) is not None:
        if body.bodies:
            traffic.ask_for_bodies(owner)
        answer["requests"] = traffic.seen_by(owner, body.after)
    return exchange.json(answer)


async def _model(exchange: Exchange, handle: ModelHandle) -> dict[str, Any]:
    state, traffic = handle.state(), exchange.ingress.traffic
    reason = state.reason
    return {
        "id": handle.model_id,
        "engine": handle.engine_name,
        "state": state.state,
        "reason": reason if exchange.trusted else without_paths(reason, exchange.ingress.sources),
        "running": state.running,
        "waiting": state.waiting,
        "loads": state.loads,
        "restarts": state.restarts,
        "on_demand": state.on_demand,
        "adapters": await handle.adapters(),
        "loaded_adapters": state.adapter_names,
        "max_adapters": state.max_adapters,
        "counters": await engine_counters(handle),
        "batch_tokens": traffic.batch_tokens[handle.model_id] if traffic is not None else 0,
    }
