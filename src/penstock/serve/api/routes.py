"""The table of endpoints. The router, the OpenAPI document and the metrics' labels
derive from it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from penstock.openai.extensions import (
    ClassifyBody,
    DetokenizeBody,
    RerankBody,
    ScoreBody,
    TokenizeBody,
)
from penstock.openai.messages_api import MessageBody
from penstock.openai.requests import ChatBody, CompletionBody, EmbeddingBody
from penstock.openai.responses_api import ResponseBody
from penstock.serve.api.auth import check_admin
from penstock.serve.api.endpoints import (
    chat,
    completions,
    control,
    embeddings,
    messages,
    models,
    responses,
    scoring,
    site,
    tokens,
    transcriptions,
)
from penstock.serve.api.exchange import Exchange

Answer = Callable[[Exchange], Awaitable[Response]]


class Endpoint(Struct, frozen=True):
    """One method of one path. `body` is the form of its JSON body. `runs`: it uses an engine;
    `admin`: for operators only; `public`: for everybody, without a key. Raises `ValueError` for an
    endpoint that controls a model without `admin`.
    """

    method: str
    path: str
    answer: Answer
    body: type[Struct] | None = None
    runs: bool = False
    admin: bool = False
    public: bool = False

    def __post_init__(self) -> None:
        controls = self.answer.__module__ == control.__name__
        if (controls and not self.admin) or (self.admin and self.public):
            raise ValueError(
                f"{self.method} {self.path}: what controls a model needs admin=True, and is not"
                " public"
            )


ENDPOINTS: tuple[Endpoint, ...] = (
    Endpoint("GET", "/v1/models", models.list_models),
    Endpoint("GET", "/v1/models/{id:path}", models.show_model),
    Endpoint("POST", "/v1/chat/completions", chat.chat_completions, ChatBody, runs=True),
    Endpoint("POST", "/v1/completions", completions.completions, CompletionBody, runs=True),
    Endpoint("POST", "/v1/responses", responses.responses, ResponseBody, runs=True),
    Endpoint("POST", "/v1/messages", messages.messages, MessageBody, runs=True),
    Endpoint("POST", "/v1/embeddings", embeddings.embeddings, EmbeddingBody, runs=True),
    Endpoint("POST", "/v1/score", scoring.score, ScoreBody, runs=True),
    Endpoint("POST", "/v1/rerank", scoring.rerank, RerankBody, runs=True),
    Endpoint("POST", "/classify", scoring.classify, ClassifyBody, runs=True),
    Endpoint("POST", "/v1/audio/transcriptions", transcriptions.transcriptions, runs=True),
    Endpoint("POST", "/tokenize", tokens.tokenize, TokenizeBody, runs=True),
    Endpoint("POST", "/detokenize", tokens.detokenize, DetokenizeBody, runs=True),
    Endpoint("GET", "/health", site.health, public=True),
    Endpoint("GET", "/ready", site.ready, public=True),
    Endpoint("GET", "/metrics", site.metrics),
    Endpoint("GET", "/openapi.json", site.openapi),
    Endpoint("GET", "/docs", site.docs),
)
_ACTIONS = (
    "sleep",
    "wakeup",
    "pause",
    "resume",
    "reset_prefix_cache",
    "start_profile",
    "stop_profile",
)
CONTROL_ENDPOINTS: tuple[Endpoint, ...] = (
    *(
        Endpoint("POST", f"/{name}", control.act(name), control.ControlBody, admin=True)
        for name in (*_ACTIONS, "collective_rpc")
    ),
    *(
        Endpoint("GET", f"/{name}", control.ask(name), admin=True)
        for name in ("is_sleeping", "is_paused")
    ),
)


class _Answering:
    """Runs an endpoint as an ASGI application."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange: Exchange = scope["penstock.exchange"]
        exchange.endpoint = self._endpoint.path
        exchange.runs = self._endpoint.runs
        exchange.request = Request(scope, receive)
        if self._endpoint.admin:
            check_admin(exchange.rank, exchange.request.headers)
        response = await self._endpoint.answer(exchange)
        await response(scope, receive, send)


def as_route(endpoint: Endpoint) -> Route:
    """The endpoint as a route for Starlette's router."""
    return Route(endpoint.path, _Answering(endpoint), methods=[endpoint.method])
