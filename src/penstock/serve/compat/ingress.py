"""`OpenAiIngress` with the methods of `ray.serve.llm`'s: a user's class may override them.

Each method answers one route. Underneath is Penstock's own ingress, which checks keys and limits
before a method is called, and answers what the methods of this class pass on.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing
from types import MethodType
from typing import Annotated, Any, ClassVar

import msgspec
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from penstock import lazy
from penstock.errors import ConfigError, ModelNotFoundError, PenstockError, RequestError
from penstock.llm_config import LLMConfig
from penstock.openai.audio import as_values
from penstock.serve.api.errors import error_response
from penstock.serve.api.exchange import Exchange, IngressState
from penstock.serve.api.ingress import IngressApp
from penstock.serve.api.routes import CONTROL_ENDPOINTS
from penstock.serve.compat.asking import Answer, ask
from penstock.serve.compat.faced import check_class, is_foreign
from penstock.serve.compat.forms import METHODS, body_of, form_of, misfit, told_by
from penstock.serve.compat.hosts import hosts
from penstock.serve.compat.models import (
    REQUESTS,
    ChatCompletionRequest,
    CompletionRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    ModelCard,
    ModelList,
    OpenAIHTTPException,
    ScoreRequest,
    TokenizeRequest,
    TranscriptionRequest,
    to_model_metadata,
)
from penstock.serve.config.placement import ingress_options
from penstock.serve.config.settings import HttpSettings
from penstock.serve.models.handle import ModelHandle, ModelNames

Factory = Callable[[Any], Callable[[Any], Any]]
"""Takes the FastAPI application, and gives what registers a method on a route."""

DEFAULT_ENDPOINTS: dict[str, Factory] = {
    "models": lambda app: app.get("/v1/models", response_model=ModelList),
    "model_data": lambda app: app.get("/v1/models/{model:path}", response_model=ModelCard),
    **{
        name: (lambda app, path=path: app.post(path))  # type: ignore[misc]
        for name, path in METHODS.items()
    },
}
"""Method → its route."""
NOT_CALLED = ("_get_response", "_get_model_id", "_get_configured_serve_handle")
"""Methods of Ray's ingress that nothing here calls."""
_ANSWERED = "penstock.answered"
"""In the scope of a user's application: errors that `_crashed` answered."""
_HIDDEN = frozenset({b"content-length", b"content-type", b"transfer-encoding"})


class OpenAiIngress:
    """The routes of Ray's ingress, a method each. `llm_deployments` are handles of the runtime, or
    `ModelHandle`s, by model id; `model_cards` come from `to_model_metadata`. The last argument
    gives further metadata of an adapter by its id and its model's path of adapters.

    A subclass has those routes only, so that a check in its methods cannot be passed by. A method
    gets the request as a model of `penstock.serve.openai_api_models`, and `request`; `super()`'s
    answers with a Starlette response, of an error too. Raises `ConfigError` for a subclass that
    overrides what is not called.
    """

    endpoint_map: ClassVar[Mapping[str, Factory] | None] = None
    fastapi_app: ClassVar[Any] = None

    def __init__(
        self,
        llm_deployments: Mapping[str, Any],
        model_cards: Mapping[str, ModelCard],
        *,
        lora_paths: Mapping[str, str] | None = None,
        _get_lora_model_metadata_func: Callable[[str, str], Awaitable[Any]] | None = None,
    ) -> None:
        if set(llm_deployments) != set(model_cards):
            raise ConfigError(
                "llm_deployments and model_cards must have the same model ids, not"
                f" {sorted(llm_deployments)} and {sorted(model_cards)}"
            )
        check_class(type(self), NOT_CALLED)
        self._default_serve_handles = dict(llm_deployments)
        self._model_cards = dict(model_cards)
        self._lora_paths = dict(lora_paths or {})
        self._get_lora_model_metadata_func = _get_lora_model_metadata_func
        self._names = ModelNames({})
        self._router: ASGIApp | None = None

    # Life
    def application(
        self, models: Mapping[str, ModelHandle], settings: HttpSettings | None = None
    ) -> IngressApp:
        """The ASGI application of this ingress over these models."""
        self._names = ModelNames(models, None, self._lora_paths)
        state = IngressState(self._names, settings or HttpSettings())
        plain = self.endpoint_map is None and self.fastapi_app is None
        if plain and not any(map(is_foreign_in(type(self)), DEFAULT_ENDPOINTS)):
            return IngressApp(state)  # nothing is overridden
        return IngressApp(state, inside=self._inside)

    @classmethod
    def in_front_of(
        cls,
        models: Mapping[str, ModelHandle],
        llm_configs: Iterable[LLMConfig],
        lora_paths: Mapping[str, str] | None,
        settings: HttpSettings,
        extra: Mapping[str, Any],
        deployments: Mapping[str, Any],
    ) -> IngressApp:
        """The application of an ingress of this class, made with `extra` and the `deployments`."""
        cards = {one.model_id: to_model_metadata(one.model_id, one) for one in llm_configs}
        made = cls(deployments, cards, lora_paths=lora_paths, **extra)
        return made.application(models, settings)

    async def __serve_build_asgi_app__(self) -> Any:
        given = self._default_serve_handles
        if all(isinstance(one, ModelHandle) for one in given.values()):
            return self.application(given)
        runtime = hosts()
        assert runtime is not None  # handles are of a runtime
        configs = {id: await _config_of(given[id], card) for id, card in self._model_cards.items()}
        return runtime.at_root(self.application(await runtime.models(given, configs)))

    def _inside(self, router: ASGIApp) -> ASGIApp:
        self._router = router
        app = routed(self, self.endpoint_map or DEFAULT_ENDPOINTS, self.fastapi_app)
        invalid = lazy.require("fastapi.exceptions").RequestValidationError
        default = lazy.require("fastapi.exception_handlers").request_validation_exception_handler
        handlers = app.exception_handlers  # those of the user's application come first
        handlers.setdefault(PenstockError, _failed)
        handlers.setdefault(OpenAIHTTPException, _refused)
        handlers.setdefault(Exception, _crashed)
        if handlers.get(invalid, default) is default:
            handlers[invalid] = _wrong
        return Inside(app, router)

    async def check_health(self) -> None:
        """Healthy as long as it runs."""

    @classmethod
    def get_deployment_options(cls, llm_configs: list[LLMConfig] | None = None) -> dict[str, Any]:
        """The options of `serve.deployment` for this ingress."""
        runtime = hosts()
        return ingress_options() if runtime is None else runtime.taken(ingress_options())

    # Models
    async def models(self) -> ModelList:
        """Every model, each followed by its adapters."""
        cards = await self._names.cards()
        return ModelList(data=[await self._card(card) for card in cards])

    async def model(self, model_id: str) -> ModelCard | None:
        """The card of a model or adapter; None if there is none."""
        try:
            return await self._card(await self._names.card(model_id))
        except ModelNotFoundError:
            return None

    async def _card(self, given: dict[str, Any]) -> ModelCard:
        """A card; that of an adapter has what the given function says of it."""
        card, metadata_of = ModelCard(**given), self._get_lora_model_metadata_func
        path = self._lora_paths.get(given["parent"] or "")
        if metadata_of is not None and path is not None:
            card.metadata = {**card.metadata, **await metadata_of(card.id, path)}
        return card

    async def model_data(self, model: str) -> ModelCard:
        """The card of one model or adapter."""
        card = await self.model(model)
        if card is None:
            raise OpenAIHTTPException(404, f"Unable to find {model}.", type="InvalidModel")
        return card

    async def _get_model_id(self, model: str | None) -> str:
        return (await self._names.find(model or "")).name

    def _get_configured_serve_handle(self, model_id: str) -> Any:
        base, _, adapter = model_id.partition(":")
        if model_id in self._default_serve_handles:
            return self._default_serve_handles[model_id].options(stream=True)
        if not adapter or base not in self._default_serve_handles:
            raise ModelNotFoundError(f"no model '{model_id}'", param="model")
        handle = self._default_serve_handles[base]
        return handle.options(stream=True, multiplexed_model_id=model_id)

    # Requests
    async def chat(self, body: ChatCompletionRequest, request: Request) -> Response:
        """Continue a conversation."""
        return await self._process_llm_request(body, call_method="chat", raw_request=request)

    async def completions(self, body: CompletionRequest, request: Request) -> Response:
        """Continue a prompt."""
        return await self._process_llm_request(body, call_method="completions", raw_request=request)

    async def embeddings(self, body: EmbeddingRequest, request: Request) -> Response:
        """Embed texts."""
        return await self._process_llm_request(body, call_method="embeddings", raw_request=request)

    async def transcriptions(
        self, body: Annotated[TranscriptionRequest, "form"], request: Request
    ) -> Response:
        """Write down what a recording says."""
        return await self._process_llm_request(
            body, call_method="transcriptions", raw_request=request
        )

    async def score(self, body: ScoreRequest, request: Request) -> Response:
        """Score how well pairs of texts match."""
        return await self._process_llm_request(body, call_method="score", raw_request=request)

    async def tokenize(self, body: TokenizeRequest, request: Request) -> Response:
        """The token ids of a text or a conversation."""
        return await self._process_llm_request(body, call_method="tokenize", raw_request=request)

    async def detokenize(self, body: DetokenizeRequest, request: Request) -> Response:
        """The text of token ids."""
        return await self._process_llm_request(body, call_method="detokenize", raw_request=request)

    async def _process_llm_request(
        self, body: Any, call_method: str, raw_request: Request | None = None
    ) -> Response:
        """The answer of Penstock's own endpoint to this body."""
        if raw_request is None or self._router is None:
            raise RequestError("only a request to this ingress can be passed on")
        if call_method == "transcriptions":
            kind, data = form_of(body.model_dump(exclude_unset=True))
        else:
            kind, data = "application/json", msgspec.json.encode(body_of(body))
        headers = [pair for pair in raw_request.scope["headers"] if pair[0] not in _HIDDEN]
        headers += [(b"content-type", kind.encode()), (b"content-length", b"%d" % len(data))]
        scope = {**raw_request.scope, "path": METHODS[call_method], "headers": headers}
        answer = await ask(self._router, scope, data)
        kind = answer.headers.get("content-type", "")
        kept = {name: value for name, value in answer.headers.items() if name != "content-length"}
        if kind.startswith("text/event-stream"):
            return Passed(answer, kept)
        return Response(await answer.whole(), answer.status, kept)


class Passed(StreamingResponse):
    """A stream that is passed on. Whatever becomes of it, the request underneath ends."""

    def __init__(self, answer: Answer, headers: Mapping[str, str]) -> None:
        super().__init__(_text(answer.parts()), answer.status, headers)
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._answer.close()


class Inside:
    """The FastAPI application of a user's class. Bodies are read here, within the ingress's limits;
    the control routes, where there are any, are Penstock's.
    """

    def __init__(self, app: Any, router: ASGIApp) -> None:
        self.app = app
        self._router = router
        self._own = {(one.method, one.path) for one in CONTROL_ENDPOINTS}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # the application's own start and end
            await self.app(scope, receive, send)
            return
        if (scope["method"], scope["path"]) in self._own:
            await self._router(scope, receive, send)
            return
        exchange: Exchange = scope["penstock.exchange"]
        exchange.request = Request(scope, receive)
        exchange.endpoint = scope["path"] if scope["path"] in METHODS.values() else "other"
        body: bytes | None = await exchange.read() if scope["method"] == "POST" else b""

        async def again() -> Message:
            nonlocal body
            if body is None:
                return await receive()
            content, body = body, None
            return {"type": "http.request", "body": content, "more_body": False}

        answered: list[Exception] = []
        inner = {**scope, "app": self.app, _ANSWERED: answered}
        try:
            await self.app(inner, again, send)
        except Exception as error:  # Starlette raises it again after its answer
            if not any(one is error for one in answered):
                raise


def make_fastapi_ingress(
    cls: type, *, endpoint_map: Mapping[str, Factory] | None = None, app: Any = None
) -> type:
    """The class with each method of `endpoint_map` (default: `OpenAiIngress`'s) on its route of
    `app`, a FastAPI application. Where Ray is loaded, `serve.deployment` takes it.
    """
    made = type(
        cls.__name__,
        (cls,),
        {
            "__qualname__": cls.__qualname__,
            "endpoint_map": endpoint_map,
            "fastapi_app": app,
        },
    )
    for name in endpoint_map or ():
        if not callable(getattr(cls, name, None)):
            raise ConfigError(f"{cls.__name__} has no method '{name}'", field="endpoint_map")
    if not issubclass(cls, OpenAiIngress):
        if endpoint_map is None:
            raise ConfigError(f"{cls.__name__} needs routes", field="endpoint_map")
        made.__serve_build_asgi_app__ = _build_routed  # type: ignore[attr-defined]
    runtime = hosts()
    if runtime is None:
        return made
    deployable = runtime.deployable(made)
    deployable.undeployed = made  # type: ignore[attr-defined]
    return deployable


def routed(instance: Any, endpoints: Mapping[str, Factory], app: Any = None) -> Any:
    """A FastAPI application with the methods of `instance` on their routes, those too that the
    class's body put on routes of `app`.
    """
    fastapi = lazy.require("fastapi", needed_by="An ingress in Ray's form")
    app = fastapi.FastAPI() if app is None else app
    _bind(app.router.routes, instance)
    for name, route in endpoints.items():
        method = getattr(instance, name)
        if name == "transcriptions":
            method = _with_form(method)
        elif name in METHODS and "body" not in getattr(method, "__annotations__", {}):
            method = _annotated(method, name)
        route(app)(method)
    return app


def _bind(routes: list[Any], instance: Any) -> None:
    """Give the endpoints that are functions of the instance's class their `self`."""
    classes = {(one.__module__, one.__qualname__) for one in type(instance).__mro__}
    for number, route in enumerate(routes):
        if (included := getattr(route, "original_router", None)) is not None:
            _bind(included.routes, instance)
        endpoint = getattr(route, "endpoint", None)
        if not hasattr(route, "dependant") or not inspect.isfunction(endpoint):
            continue
        # Not by identity: two methods of a name may have a route each.
        if (endpoint.__module__, endpoint.__qualname__.rpartition(".")[0]) in classes:
            taken = inspect.signature(type(route)).parameters
            about = {name: getattr(route, name) for name in taken if hasattr(route, name)}
            routes[number] = type(route)(**{**about, "endpoint": MethodType(endpoint, instance)})


def is_foreign_in(cls: type) -> Callable[[str], bool]:
    """Whether a user's class has a method of its own, by the method's name."""
    passing = is_foreign(cls, "_process_llm_request")
    return lambda name: passing or is_foreign(cls, name) or is_foreign(cls, "model")


def _build_routed(self: Any) -> Any:
    return routed(self, self.endpoint_map, self.fastapi_app)


def _annotated(method: Any, name: str) -> Any:
    """A user's method that does not say what it takes, which FastAPI must know."""

    async def annotated(body: Any, request: Request) -> Any:
        return await method(body, request)

    form: Any = EmbeddingRequest if name == "embeddings" else REQUESTS[name]
    annotated.__annotations__ = {"body": TokenizeRequest if name == "tokenize" else form}
    annotated.__annotations__["request"] = Request
    annotated.__name__ = name
    return annotated


def _with_form(method: Any) -> Any:
    """The method with its request read from a multipart form."""

    async def transcriptions(request: Request) -> Response:
        async with request.form(max_files=1) as form:
            try:
                body = TranscriptionRequest.model_validate(as_values(form.multi_items()))
            except ValidationError as error:
                raise misfit(error) from None
            answer: Response = await method(body, request)
            return answer

    transcriptions.__annotations__ = {"request": Request}
    return transcriptions


async def _config_of(handle: Any, card: Any) -> LLMConfig:
    config = getattr(card, "llm_config", None)
    if config is None:
        config, _ = await handle.connection.remote()
    found: LLMConfig = config
    return found


async def _text(parts: AsyncGenerator[bytes, None]) -> AsyncGenerator[str, None]:
    async with aclosing(parts):
        async for part in parts:
            yield part.decode()


async def _failed(request: Request, error: Any) -> Response:
    exchange: Exchange = request.scope["penstock.exchange"]
    return error_response(request.scope, exchange.failed(error), exchange.id)


async def _crashed(request: Request, error: Any) -> Response:
    request.scope[_ANSWERED].append(error)
    return await _failed(request, told_by(error) or error)


async def _refused(request: Request, error: Any) -> Response:
    about = {"message": error.message, "type": error.type, "param": None, "code": error.status_code}
    return JSONResponse({"error": about}, error.status_code)


async def _wrong(request: Request, error: Any) -> Response:
    return await _failed(request, misfit(error))
