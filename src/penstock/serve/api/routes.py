"""The table of endpoints. Router, OpenAPI document and the labels of metrics derive from it."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import msgspec
from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

import penstock
from penstock.errors import RequestError, UnsupportedError
from penstock.openai.audio import SpeechBody
from penstock.openai.decisions.openai_form import DecisionBody
from penstock.openai.decisions.system_one import SystemOneBody
from penstock.openai.embeddings_api import EmbeddingBody
from penstock.openai.extensions import (
    ClassifyBody,
    DetokenizeBody,
    PoolingBody,
    RerankBody,
    ScoreBody,
    TokenizeBody,
)
from penstock.openai.messages_api import CountBody, MessageBody
from penstock.openai.parameters.body import parse_body
from penstock.openai.requests import ChatBody, CompletionBody
from penstock.openai.responses_api import ResponseBody
from penstock.serve.api.auth import check_admin
from penstock.serve.api.endpoints import (
    console,
    control,
    generation,
    responses,
    site,
    texts,
    transcriptions,
)
from penstock.serve.api.endpoints.responses import (
    ConversationBody,
    ConversationItems,
    ConversationUpdate,
)
from penstock.serve.api.exchange import Exchange
from penstock.serve.api.limits import decode_body
from penstock.serve.api.query import check_query

_SHAPES: tuple[tuple[str, type[Struct], Callable[..., Awaitable[Response]]], ...] = (
    ("messages", ChatBody, generation.chat_completions),
    ("prompt", CompletionBody, generation.completions),
    ("questions", DecisionBody, texts.decisions),
    ("labels", ClassifyBody, texts.classify),
    ("input", EmbeddingBody, texts.embeddings),
    ("text_1", ScoreBody, texts.score),
    ("query", RerankBody, texts.rerank),
)
"""The bodies that `POST /invocations` takes, as in vLLM; Amazon SageMaker sends everything there.
For each: the parameter by which its form is known, the form, and the endpoint that answers it.
"""
_CLASSIFY_NAMES = frozenset(ClassifyBody.__struct_fields__)
FORMS: tuple[type[Struct], ...] = tuple(form for _, form, _ in _SHAPES)


async def invocations(exchange: Exchange) -> Response:
    """Answer a body of any form in `_SHAPES`. An `input` is classified where the model makes no
    embeddings.
    """
    given = await exchange.read_json()
    body: Any = await exchange.aside(lambda: decode_body(given, Any))
    for name, form, answer in _SHAPES:
        if isinstance(body, dict) and body.get(name) is not None:
            try:
                return await answer(exchange, await exchange.aside(partial(parse_body, form, body)))
            except UnsupportedError:
                if form is not EmbeddingBody or not body.keys() <= _CLASSIFY_NAMES:
                    raise
            return await texts.classify(exchange, parse_body(ClassifyBody, body))
    names = ", ".join(name for name, _, _ in _SHAPES)
    raise RequestError(f"the body has no form that is known here: it needs one of {names}")


class Endpoint(Struct, frozen=True):
    """One method of one path, as an ASGI application.

    `answer` gets the exchange, and its JSON body if `body` is that body's form. `forms` are the
    forms of a JSON body that `answer` reads itself, `multipart` is the JSON Schema of a multipart
    form. `query` names the parameters of the URL; None leaves their check to `answer`. `lenient`:
    other parameters are ignored, as monitors and links add some. `runs`: the endpoint uses an
    engine, and the console shows its requests while they run. `admin`: for operators only.
    `public`: for everybody, without a key. Raises `ValueError` for an endpoint that controls a
    model without `admin`, or that is `admin` and `public`.
    """

    method: str
    path: str
    answer: Callable[..., Awaitable[Response]]
    body: type[Struct] | None = None
    forms: tuple[type[Struct], ...] = ()
    multipart: dict[str, Any] | None = None
    query: tuple[str, ...] | None = ()
    lenient: bool = False
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

    @property
    def json_forms(self) -> tuple[type[Struct], ...]:
        """The forms that a JSON body may have."""
        return self.forms if self.body is None else (self.body,)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange: Exchange = scope["penstock.exchange"]
        exchange.endpoint = self.path
        exchange.runs = self.runs
        exchange.request = Request(scope, receive)
        if self.runs and (traffic := exchange.ingress.traffic) is not None:
            traffic.under_way.add(exchange)
        if self.admin:
            check_admin(exchange.rank, exchange.request.headers)
        if scope.get("query_string"):
            check_query(exchange.request.query_params, self.path, self.query, lenient=self.lenient)
        body = () if self.body is None else (await exchange.body(self.body),)
        response = await self.answer(exchange, *body)
        await response(scope, receive, send)


_PAGE = ("limit", "order", "after")
ENDPOINTS: tuple[Endpoint, ...] = (
    Endpoint("GET", "/v1/models", site.list_models, query=("limit", "after_id", "before_id")),
    Endpoint("GET", "/v1/models/{id:path}", site.show_model),
    Endpoint("POST", "/v1/chat/completions", generation.chat_completions, ChatBody, runs=True),
    Endpoint("POST", "/v1/completions", generation.completions, CompletionBody, runs=True),
    Endpoint("POST", "/v1/responses", responses.create, ResponseBody, runs=True),
    Endpoint(
        "GET",
        "/v1/responses/{response_id}",
        responses.retrieve,
        query=("stream", "starting_after"),
    ),
    Endpoint("DELETE", "/v1/responses/{response_id}", responses.delete),
    Endpoint("POST", "/v1/responses/{response_id}/cancel", responses.cancel),
    Endpoint("GET", "/v1/responses/{response_id}/input_items", responses.input_items, query=_PAGE),
    Endpoint("POST", "/v1/conversations", responses.create_conversation, ConversationBody),
    Endpoint("GET", "/v1/conversations/{conversation_id}", responses.retrieve_conversation),
    Endpoint(
        "POST",
        "/v1/conversations/{conversation_id}",
        responses.update_conversation,
        ConversationUpdate,
    ),
    Endpoint("DELETE", "/v1/conversations/{conversation_id}", responses.delete_conversation),
    Endpoint(
        "POST",
        "/v1/conversations/{conversation_id}/items",
        responses.add_items,
        ConversationItems,
    ),
    Endpoint("GET", "/v1/conversations/{conversation_id}/items", responses.list_items, query=_PAGE),
    Endpoint("GET", "/v1/conversations/{conversation_id}/items/{item_id}", responses.show_item),
    Endpoint(
        "DELETE", "/v1/conversations/{conversation_id}/items/{item_id}", responses.delete_item
    ),
    Endpoint("POST", "/v1/messages", generation.messages, MessageBody, runs=True),
    Endpoint("POST", "/v1/messages/count_tokens", texts.count_tokens, CountBody, runs=True),
    Endpoint("POST", "/v1/decisions", texts.decisions, DecisionBody, runs=True),
    Endpoint("POST", "/v1/systemone", texts.systemone, SystemOneBody, runs=True),
    Endpoint("POST", "/v1/embeddings", texts.embeddings, EmbeddingBody, runs=True),
    *(
        Endpoint("POST", path, texts.score, ScoreBody, runs=True)
        for path in ("/v1/score", "/score")
    ),
    *(
        Endpoint("POST", path, texts.rerank, RerankBody, runs=True)
        for path in ("/v1/rerank", "/rerank", "/v2/rerank")
    ),
    Endpoint("POST", "/pooling", texts.pooling, PoolingBody, runs=True),
    Endpoint("POST", "/classify", texts.classify, ClassifyBody, runs=True),
    Endpoint(
        "POST",
        "/v1/audio/transcriptions",
        transcriptions.transcriptions,
        multipart=transcriptions.FORM,
        runs=True,
    ),
    Endpoint(
        "POST",
        "/v1/audio/translations",
        transcriptions.translations,
        multipart=transcriptions.FORM,
        runs=True,
    ),
    Endpoint("POST", "/v1/audio/speech", transcriptions.speech, SpeechBody, runs=True),
    Endpoint("POST", "/invocations", invocations, forms=FORMS, runs=True),
    Endpoint("POST", "/tokenize", texts.tokenize, TokenizeBody, runs=True),
    Endpoint("POST", "/detokenize", texts.detokenize, DetokenizeBody, runs=True),
    Endpoint("GET", "/tokenizer_info", texts.tokenizer_info, query=("model",), runs=True),
    Endpoint("GET", "/health", site.health, lenient=True, public=True),
    Endpoint("GET", "/ping", site.health, lenient=True, public=True),
    Endpoint("POST", "/ping", site.health, lenient=True, public=True),
    Endpoint("GET", "/ready", site.ready, query=("model",), lenient=True, public=True),
    Endpoint("GET", "/version", site.version),
    Endpoint("GET", "/load", site.load),
    Endpoint("GET", "/metrics", site.metrics, query=("name[]",), lenient=True),
    Endpoint("GET", "/openapi.json", site.openapi),
    Endpoint("GET", "/docs", site.docs, lenient=True),
)
_ACTIONS = (
    "sleep",
    "wakeup",
    "pause",
    "resume",
    "load_model",
    "unload_model",
    "reset_prefix_cache",
    "start_profile",
    "stop_profile",
    "collective_rpc",
)
CONTROL_ENDPOINTS: tuple[Endpoint, ...] = (
    *(
        Endpoint(
            "POST",
            f"/{path}",
            control.act(name),
            forms=(control.form_of(name),),
            query=None,
            admin=True,
        )
        for path, name in (*zip(_ACTIONS, _ACTIONS, strict=True), ("wake_up", "wakeup"))
    ),
    *(
        Endpoint("GET", f"/{name}", control.ask(name), query=("model",), admin=True)
        for name in ("is_sleeping", "is_paused")
    ),
    Endpoint(
        "POST", "/v1/load_lora_adapter", control.load_adapter, control.LoadAdapterBody, admin=True
    ),
    Endpoint(
        "POST",
        "/v1/unload_lora_adapter",
        control.unload_adapter,
        control.UnloadAdapterBody,
        admin=True,
    ),
    Endpoint("GET", "/server_info", control.server_info, admin=True),
)
CONSOLE_ENDPOINTS: tuple[Endpoint, ...] = (
    Endpoint("GET", "/console", console.file(console.PAGE), lenient=True, public=True),
    Endpoint("GET", "/console/", console.without_slash, lenient=True, public=True),
    *(
        Endpoint("GET", f"/console/{name}", console.file(name), lenient=True, public=True)
        for name in console.FILES
        if name != console.PAGE
    ),
    Endpoint("POST", "/console/live", console.live, console.LiveBody),
)
"""The console's own endpoints. Only the console calls them, so the OpenAPI document omits them."""

_ERROR = {
    "description": "The request failed.",
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
}
_ERROR_SCHEMA = {
    "type": "object",
    "description": "`/v1/messages` answers in Anthropic's form: `{type, error: {type, message}}`.",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string"},
            },
        }
    },
}


def describe(
    endpoints: Sequence[Endpoint], *, with_keys: bool, root_path: str = ""
) -> dict[str, Any]:
    """The OpenAPI document of these endpoints. `with_keys`: they need an API key."""
    forms = [form for endpoint in endpoints for form in endpoint.json_forms]
    references, schemas = msgspec.json.schema_components(
        forms, ref_template="#/components/schemas/{name}"
    )
    by_form = dict(zip(forms, references, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in endpoints:
        path = endpoint.path.replace(":path}", "}")
        method = endpoint.method.lower()
        operation: dict[str, Any] = {
            "summary": " ".join((endpoint.answer.__doc__ or "").partition("\n\n")[0].split()),
            "operationId": f"{method} {path}",
            "responses": {"200": {"description": "The answer."}, "default": _ERROR},
            "parameters": [
                *(_parameter(name, "path") for name in re.findall(r"{(\w+)}", path)),
                *(_parameter(name, "query") for name in endpoint.query or ()),
            ],
        }
        content = {}
        if schemas_of := [by_form[form] for form in endpoint.json_forms]:
            schema = schemas_of[0] if len(schemas_of) == 1 else {"anyOf": schemas_of}
            content["application/json"] = {"schema": schema}
        if endpoint.multipart is not None:
            content["multipart/form-data"] = {"schema": endpoint.multipart}
        if content:
            operation["requestBody"] = {"required": True, "content": content}
        if endpoint.public:
            operation["security"] = []
        paths.setdefault(path, {})[method] = operation
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "Penstock", "version": penstock.__version__},
        "paths": paths,
        "components": {"schemas": {**schemas, "Error": _ERROR_SCHEMA}},
    }
    if root_path:
        document["servers"] = [{"url": root_path}]
    if with_keys:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
    return document


def _parameter(name: str, place: str) -> dict[str, Any]:
    return {"name": name, "in": place, "required": place == "path", "schema": {"type": "string"}}
