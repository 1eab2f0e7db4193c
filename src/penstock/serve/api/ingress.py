"""The ingress as an ASGI application: the OpenAI-compatible API in front of one or more models."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from typing import Any

from msgspec.structs import replace
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.routing import BaseRoute, Match, Mount, Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from penstock.balance.backoff import is_served
from penstock.config import import_object
from penstock.errors import (
    ConfigError,
    MethodError,
    NoRouteError,
    RequestError,
    ShuttingDownError,
    UnsupportedError,
    nearest,
)
from penstock.llm_config import LLMConfig
from penstock.observability import escaped, request_id, span
from penstock.serve.api.auth import (
    check_admin,
    check_not_cross_site,
    check_user,
    mark_of,
    rank_of,
)
from penstock.serve.api.background import BackgroundRuns
from penstock.serve.api.endpoints import responses
from penstock.serve.api.errors import error_response, is_anthropic
from penstock.serve.api.exchange import (
    UNTRUSTED,
    Exchange,
    IngressState,
    log_access,
    note_on_span,
)
from penstock.serve.api.routes import (
    CONSOLE_ENDPOINTS,
    CONTROL_ENDPOINTS,
    ENDPOINTS,
    Endpoint,
    describe,
)
from penstock.serve.api.traffic import Traffic
from penstock.serve.config.settings import HttpSettings
from penstock.serve.models.handle import ModelCard, ModelHandle, ModelNames
from penstock.serve.replicas.forward import forward
from penstock.serve.replicas.model import RemoteModel
from penstock.serve.store.responses import ResponseStore

_PREFLIGHT_S = 86400
"""How long a browser may keep the answer to a preflight."""


class IngressApp:
    """An ASGI application. Its requests share `ingress`, through which the server drains it.

    The application neither starts nor stops models. If the models run elsewhere, it forwards
    requests unchanged. `more` are further endpoints. `inside` wraps the router: the application
    that it returns answers the requests, and may call the router.
    """

    def __init__(
        self,
        ingress: IngressState,
        more: Iterable[Endpoint] = (),
        *,
        inside: Callable[[ASGIApp], ASGIApp] | None = None,
    ) -> None:
        self.ingress = ingress
        self._more = tuple(more)
        self._inside = inside
        self._app = self._built()

    def add(self, more: Iterable[Endpoint]) -> None:
        """Add further endpoints, before the first request."""
        self._more = (*self._more, *more)
        self._app = self._built()

    def _built(self) -> ASGIApp:
        ingress, inside = self.ingress, self._inside
        settings = ingress.settings
        endpoints = (*ENDPOINTS, *(CONTROL_ENDPOINTS if settings.dev else ()), *self._more)
        if settings.store is not None and ingress.store is None:
            ingress.store = ResponseStore(settings.store)
            ingress.background = BackgroundRuns(ingress, ingress.store)
        keys, root = bool(settings.api_keys), settings.root_path
        ingress.openapi = cache(partial(describe, endpoints, with_keys=keys, root_path=root))
        if settings.console:
            endpoints = (*endpoints, *CONSOLE_ENDPOINTS)
            ingress.traffic = ingress.traffic or Traffic()
        if any(isinstance(handle, RemoteModel) for handle in ingress.models.handles.values()):
            endpoints = tuple(
                replace(one, answer=partial(forward, endpoint=one), body=None)
                if one.runs and not (ingress.store is not None and one.answer is responses.create)
                else one
                for one in endpoints
            )
        routes: list[BaseRoute] = [_Exact(one.path, one, methods=[one.method]) for one in endpoints]
        if settings.engine_app is not None:
            own = EngineApp(ingress.models, settings.engine_app)
            routes.append(Mount(settings.engine_app, own))
        router: ASGIApp = Router(routes, redirect_slashes=False)
        app: ASGIApp = ExchangeMiddleware(
            router if inside is None else inside(router),
            ingress,
            routes,
            frozenset(one.path for one in endpoints if one.public),
        )
        # If the server has keys, a page needs one, so pages of any origin may call.
        if origins := settings.cors_origins or (("*",) if settings.api_keys else ()):
            app = CORSMiddleware(
                app,
                allow_origins=origins,
                allow_methods=sorted({one.method for one in endpoints}),
                allow_headers=["*"],
                allow_private_network=True,
                expose_headers=["x-request-id", "request-id", "retry-after", "x-should-retry"],
                max_age=_PREFLIGHT_S,
            )
        return app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # With "app" in the scope, Starlette's router raises for an unknown path, and does not
        # answer it itself.
        scope["app"] = self
        if scope["type"] == "http" and (absolute := _ABSOLUTE.match(scope["path"])):
            scope = {**scope, "path": scope["path"][absolute.end() :] or "/"}
        root = self.ingress.settings.root_path
        if root and scope["type"] == "http" and scope["path"].startswith(root + "/"):
            scope = {**scope, "path": scope["path"].removeprefix(root)}
        await self._app(scope, receive, send)


_ABSOLUTE = re.compile(r"https?://[^/]*", re.IGNORECASE)
"""What a client writes before the path that takes the server for a proxy (RFC 9112, 3.2.2)."""


class _Exact(Route):
    """A route whose path ends where it ends: the `$` of Starlette lets a line break follow."""

    def __init__(self, path: str, *args: Any, **kwargs: Any) -> None:
        super().__init__(path, *args, **kwargs)
        self.path_regex = re.compile(self.path_regex.pattern.removesuffix("$") + r"\Z")


_CONTROL_PATHS = frozenset(one.path for one in CONTROL_ENDPOINTS)


def _no_route(routes: Iterable[BaseRoute], scope: Scope) -> NoRouteError:
    """The error for a path that does not exist."""
    from difflib import get_close_matches  # imported only for an error

    shown = escaped(scope["path"][:200])
    if scope["path"] in _CONTROL_PATHS:
        why = "only a server with control routes (http.dev) has it"
        return NoRouteError(f"there is no path '{shown}': {why}")
    paths = [one.path for one in routes if isinstance(one, Route)]
    near = get_close_matches(shown, paths, n=1, cutoff=0.8)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return NoRouteError(f"there is no path '{shown}'.{hint} /docs lists those that exist")


def _no_method(routes: Iterable[BaseRoute], scope: Scope) -> MethodError:
    """The error for a path that has other methods. It lists the methods of all its endpoints."""
    matching = (one for one in routes if one.matches(scope)[0] is not Match.NONE)
    methods = {m for one in matching if isinstance(one, Route) for m in one.methods or ()}
    allow, shown = ", ".join(sorted(methods)), escaped(scope["path"][:200])
    return MethodError(
        f"'{shown}' takes {allow}, not {scope['method']}; /docs lists what it does", allow
    )


_UNROUTED = {404: _no_route, 405: _no_method}


class OpenAiIngress(IngressApp):
    """The ingress of models by their ids. Classes for `ingress_cls_config` may derive from it; they
    are called with `ingress_extra_kwargs` too. `penstock.serve.ingress.OpenAiIngress` is Ray's.

    `model_cards` has facts that handles lack; `lora_paths` names models with adapters on demand.
    """

    def __init__(
        self,
        llm_deployments: Mapping[str, ModelHandle],
        model_cards: Mapping[str, ModelCard] | None = None,
        lora_paths: Mapping[str, str] | None = None,
        *,
        settings: HttpSettings | None = None,
    ) -> None:
        super().__init__(
            IngressState(
                ModelNames(llm_deployments, model_cards, lora_paths), settings or HttpSettings()
            )
        )


RAYS_METHODS = (
    *("models", "model_data", "model", "chat", "completions", "embeddings", "transcriptions"),
    *("score", "tokenize", "detokenize"),
)
"""The methods of `ray.serve.llm`'s ingress, which nothing calls in an `OpenAiIngress`."""
_RAYS_FORM = "Derive it from penstock.serve.ingress.OpenAiIngress, which has Ray's methods."


def ingress_class(given: Any) -> Any:
    """The class of an ingress: derived from `OpenAiIngress`, or in Ray's form. `given` is the class
    or its import path. Raises `ConfigError` for another class, and for one whose methods would be
    ignored.
    """
    where = "ingress_cls_config.ingress_cls"
    cls = import_object(given, where)
    cls = getattr(cls, "undeployed", cls)
    if not isinstance(cls, type):
        raise ConfigError("must be a class", field=where, value=given)
    if hasattr(cls, "in_front_of"):
        return cls
    if not issubclass(cls, OpenAiIngress):
        raise ConfigError(
            f"{cls.__name__} is no ingress of Penstock's",
            field=where,
            value=given,
            hint=_RAYS_FORM,
        )
    for name in RAYS_METHODS:
        if hasattr(cls, name):
            raise ConfigError(
                f"nothing calls {cls.__name__}.{name}",
                field=where,
                value=given,
                hint=_RAYS_FORM,
            )
    return cls


_OWN = frozenset({"self", "llm_deployments", "model_cards", "lora_paths", "settings"})
"""The arguments that every ingress is called with."""


def check_extra(cls: type, extra: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for `ingress_extra_kwargs` that the class does not take, or lacks."""
    where = "ingress_cls_config.ingress_extra_kwargs"
    known: set[str] = set()
    for one in cls.__mro__:  # each class passes on what it does not take
        if "__init__" not in vars(one):
            continue
        taken = inspect.signature(vars(one)["__init__"]).parameters.values()
        for part in taken:
            needed = part.kind is part.KEYWORD_ONLY and part.default is part.empty
            if needed and part.name not in {*extra, *known, *_OWN}:
                raise ConfigError(
                    f"'{part.name}' is missing, which {one.__name__} needs", field=where
                )
        known |= {
            part.name
            for part in taken
            if part.kind in (part.POSITIONAL_OR_KEYWORD, part.KEYWORD_ONLY)
        }
        if not any(part.kind is part.VAR_KEYWORD for part in taken):
            break
    known -= _OWN
    for name in extra:
        if name not in known:
            raise ConfigError(
                f"unknown key '{name}': {cls.__name__} does not take it",
                field=where,
                value=extra[name],
                hint=nearest(name, known),
            )


def made_ingress(
    config: Mapping[str, Any],
    models: Mapping[str, ModelHandle],
    llm_configs: Iterable[LLMConfig],
    cards: Mapping[str, ModelCard] | None = None,
    lora_paths: Mapping[str, str] | None = None,
    *,
    settings: HttpSettings,
    deployments: Mapping[str, Any] | None = None,
) -> IngressApp:
    """The ingress that `ingress_cls_config` asks for. `deployments` are the handles of the runtime
    for a class in Ray's form. Raises `ConfigError`.
    """
    cls = ingress_class(config.get("ingress_cls") or OpenAiIngress)
    extra = config.get("ingress_extra_kwargs") or {}
    check_extra(cls, extra)
    front = getattr(cls, "in_front_of", None)
    if front is not None:
        app: IngressApp = front(
            models, llm_configs, lora_paths, settings, extra, deployments or models
        )
        return app
    app = cls(models, cards, lora_paths, settings=settings, **extra)
    return app


class ExchangeMiddleware:
    """The outermost layer: makes the `Exchange`, and turns every error inside into a response.

    The `public` paths are open to everybody, and stay open during a shutdown. Routes for operators
    check the caller's rank themselves.
    """

    def __init__(
        self,
        app: ASGIApp,
        ingress: IngressState,
        routes: Iterable[BaseRoute],
        public: frozenset[str],
    ) -> None:
        self._app = app
        self._ingress = ingress
        self._routes = routes
        self._public = public

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        exchange = scope["penstock.exchange"] = Exchange(self._ingress, headers.get("x-request-id"))

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                id = exchange.id.encode()
                message["headers"] = [
                    *message.get("headers", ()),
                    *self._ingress.reply_headers(),
                    (b"x-request-id", id),
                    *(((b"request-id", id),) if is_anthropic(scope) else ()),
                ]
            await send(message)

        self._ingress.begin()
        token = request_id.set(exchange.id)
        served = is_served.set(True)
        try:
            with span(scope["method"], headers) as current:
                try:
                    await self._answer(exchange, headers, scope, receive, send_with_id)
                finally:
                    if current.recording:
                        note_on_span(current, exchange, scope)
        finally:
            self._ingress.end()
            exchange.finish()
            log_access(exchange, scope)
            is_served.reset(served)
            request_id.reset(token)

    async def _answer(
        self, exchange: Exchange, headers: Headers, scope: Scope, receive: Receive, send: Send
    ) -> None:
        settings = self._ingress.settings
        exchange.rank = rank_of(headers, settings)
        if not self._ingress.is_replica:  # a replica sees the key of its ingress
            exchange.caller = mark_of(headers, exchange.rank, settings)
        exchange.trusted = exchange.rank == "admin" and headers.get(UNTRUSTED) is None
        try:
            if "transfer-encoding" in headers and "content-length" in headers:
                two_lengths = RequestError(
                    "a request has a Content-Length or a Transfer-Encoding, not both"
                )
                # A proxy could take the body's end for the next request, maybe of another caller.
                two_lengths.ends_connection = True
                raise two_lengths
            if scope["path"] not in self._public:
                check_user(exchange.rank, headers, settings)
                check_not_cross_site(scope, headers, settings)
                if self._ingress.draining:
                    raise ShuttingDownError("the server is shutting down")
            await self._app(scope, receive, send)
        except Exception as caught:
            if isinstance(caught, HTTPException) and caught.status_code in _UNROUTED:
                caught = _UNROUTED[caught.status_code](self._routes, scope)
            error = exchange.failed(caught)
            if exchange.status:
                raise  # the response has begun: only closing the connection signals an error
            await error_response(scope, error, exchange.id)(scope, receive, send)


class EngineApp:
    """The HTTP application of the only model's engine. It bypasses the queue, limits and adapters
    of this server, so only admins may use it. Raises `ConfigError` if there is no such application.
    """

    def __init__(self, models: ModelNames, path: str) -> None:
        if len(models.handles) != 1:
            raise ConfigError("needs exactly one model", field="engine_app", value=path)
        (self._handle,) = models.handles.values()
        self._path = path
        try:
            self._app: ASGIApp = self._handle.engine_app()
        except UnsupportedError:
            raise ConfigError(
                f"the {self._handle.engine_name} engine has no application of its own here",
                field="engine_app",
                value=path,
            ) from None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange: Exchange = scope["penstock.exchange"]
        exchange.endpoint = self._path
        exchange.model = self._handle.model_id
        exchange.request = Request(scope, receive)
        check_admin(exchange.rank, exchange.request.headers)
        await self._app(scope, receive, send)
