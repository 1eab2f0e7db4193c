"""Between Penstock's neutral requests and results and those of Ray's servers and engines.

The methods of Ray's servers take a request as a pydantic model, and give strings of server-sent
events, one response object, or an error object. What they take and give is what an HTTP server
takes and gives, so the `remote` engine's reader and writer of OpenAI's form do the work.
"""

from __future__ import annotations

import inspect
import json
import secrets
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import msgspec

from penstock.engines.remote.answers import parse_chunk
from penstock.engines.remote.requests import chat_body, completion_body, task_body
from penstock.engines.remote.results import read_task
from penstock.engines.remote.stream import EventReader, StreamReader
from penstock.engines.tasks import Batches
from penstock.errors import EngineError, PenstockError, RequestError, by_kind
from penstock.serve.models.handle import CLIENT_HEADER, CLIENT_HEADERS
from penstock.types import ChatRequest, CompletionRequest

METHODS: Mapping[str, str] = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "embeddings": "/v1/embeddings",
    "score": "/v1/score",
    "tokenize": "/tokenize",
    "detokenize": "/detokenize",
    "transcriptions": "/v1/audio/transcriptions",
}
"""The methods of Ray's servers that take a request → the route of the HTTP API that answers it."""
METHOD_OF = {"tokens": "tokenize"}
"""Tasks that Ray's method of another name answers."""
_IN_QUOTES = str.maketrans({'"': "%22", "\r": "%0D", "\n": "%0A"})
"""How browsers write a form's names."""
_PASSED_ON = ("x-session-id", "traceparent", "tracestate")


@dataclass
class RawRequestInfo:
    """The headers of an HTTP request, as Ray's servers get them beside the request: without the
    key of an ingress that has checked it.
    """

    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def from_starlette_request(cls, request: Any) -> RawRequestInfo:
        return cls(headers=dict(request.headers))

    def to_starlette_request(self) -> Any:
        """A request with these headers and nothing else."""
        from starlette.requests import Request

        scope = {"type": "http", "method": "POST", "path": "/", "query_string": b""}
        return Request({**scope, "headers": raw_headers(self.headers.items())})

    @classmethod
    def to_starlette_request_optional(cls, raw_request_info: RawRequestInfo | None = None) -> Any:
        return None if raw_request_info is None else raw_request_info.to_starlette_request()


def raw_headers(headers: Iterable[tuple[str, str | None]]) -> list[tuple[bytes, bytes]]:
    """Headers as HTTP has them."""
    return [(name.lower().encode(), _in_bytes(value or "")) for name, value in headers]


def _in_bytes(value: str) -> bytes:
    try:
        return value.encode("latin-1")  # as they are read
    except UnicodeEncodeError:
        return value.encode()


def is_neutral(request: Any) -> TypeGuard[msgspec.Struct | str | list[int]]:
    """Whether a request has Penstock's own form."""
    return isinstance(request, (msgspec.Struct, str, list))


def body_of(request: Any) -> dict[str, Any]:
    """The fields that a request was given: of a mapping or a pydantic model, Ray's and vLLM's too.

    Raises `RequestError` for anything else.
    """
    if isinstance(request, Mapping):
        return dict(request)
    if hasattr(request, "model_dump"):
        body: dict[str, Any] = request.model_dump(mode="json", exclude_unset=True)
        return body
    raise RequestError(f"a request is a mapping or a model, not a {type(request).__name__}")


def headers_of(raw: Any, request_id: str | None) -> list[tuple[str, str]]:
    """The headers for the HTTP API of a request with these, as `RawRequestInfo` or nothing."""
    given = {name.lower(): value for name, value in (raw.headers if raw else {}).items()}
    headers = [(name, given[name]) for name in _PASSED_ON if name in given]
    headers += [(CLIENT_HEADER + name, value or "") for name, value in given.items()]
    if id := request_id or given.get("x-request-id"):
        headers.append(("x-request-id", id))
    return headers


def request_for(task: str, request: Any, model: str) -> Any:
    """A neutral request as the pydantic model for the method of its task."""
    from penstock.serve.compat import models  # needs pydantic, so only where it is used

    method = METHOD_OF.get(task, task)
    if isinstance(request, ChatRequest):
        body = chat_body(request, _name(request, model), "max_tokens")
    elif isinstance(request, CompletionRequest):
        body = completion_body(request, _name(request, model))
    elif task == "transcriptions":
        fields = task_body(task, request, "penstock").items()
        body = {name.removesuffix("[]"): value for name, value in fields}
        body |= {"model": model, "file": request.audio}
    else:
        body = {"model": model, **task_body(task, request, "penstock")}
    if body.get("stream"):
        body["stream_options"] = {"include_usage": True}  # a stream has its usage only then
    form = models.REQUESTS[method]
    if "messages" in body and method in models.OF_CHATS:
        form = models.OF_CHATS[method]
    if id := getattr(request, "request_id", ""):
        body["request_id"] = id
    return form(**body)


def asked(owner: Any, task: str, request: Any, model: str) -> Any:
    """What the method of `owner`, a server or an engine in Ray's form, gives for a neutral request:
    see `items`.
    """
    id = getattr(request, "request_id", "")
    raw = RawRequestInfo({**CLIENT_HEADERS.get()(), "x-request-id": id})
    given = request_for(task, request, model)
    return getattr(owner, METHOD_OF.get(task, task))(given, raw)


def _name(request: ChatRequest | CompletionRequest, model: str) -> str:
    return model if request.adapter is None else f"{model}:{request.adapter}"


async def items(answer: Any) -> AsyncGenerator[Any, None]:
    """What a method of Ray's form gives, one by one: it is a generator, or a coroutine of one or
    of a result. Raises what it raises, or the error that this stands for (`told_by`).
    """
    try:
        if inspect.isawaitable(answer):
            answer = await answer
        if not hasattr(answer, "__aiter__"):
            yield answer
            return
        async with aclosing(answer):
            async for item in answer:
                yield item
    except Exception as error:
        if (told := told_by(error)) is None:
            raise
        raise told from error


def told_by(error: Any) -> PenstockError | None:
    """What a user's exception tells a client, as Ray reads it: by its `status_code`, or because
    pydantic found a value wrong. None for any other, and for our own.
    """
    if isinstance(error, PenstockError):
        return None
    if type(error).__module__.startswith("pydantic"):
        return misfit(error) if hasattr(error, "errors") else None
    status = getattr(error, "status_code", None)
    if not isinstance(status, int) or not 400 <= status < 600:
        return None
    message = getattr(error, "detail", None) or getattr(error, "message", None) or error
    return _error({"message": message, "code": status})


def misfit(error: Any) -> RequestError:
    """What pydantic found wrong in a request."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part != "body")
    return RequestError(f"{where or 'the body'}: {first['msg']}", param=where or None)


async def batches_of(answer: Any, request: ChatRequest | CompletionRequest, where: str) -> Batches:
    """The deltas of an answer in Ray's form: of events as text, of the objects that a stream
    consists of, or of a whole response. Raises the error that it has; `where` calls its author.
    """
    reader, events = StreamReader(request.n, where), EventReader()
    async with aclosing(items(answer)) as given:
        async for item in given:
            for one in item if isinstance(item, list) else [item]:
                if isinstance(one, str):
                    deltas = reader.feed(events.feed(one.encode()))
                    if events.error and not reader.ended:
                        reader.fail(events.error)
                else:
                    body = json_of(one)
                    whole = not request.stream or any(
                        choice.message for choice in parse_chunk(body, where).choices or ()
                    )
                    deltas = reader.whole(body) if whole else reader.feed([body])
                if deltas:
                    yield deltas
    # Who gives no more has ended its answer: a generator breaks off by raising.
    if not reader.ended and (deltas := reader.close(events.stray, done=True)):
        yield deltas


async def result_of(task: str, request: Any, answer: Any, where: str) -> Any:
    """The result of a task that does not stream. Raises the error that the answer has instead."""
    async with aclosing(items(answer)) as given:
        async for item in given:
            return read_task(task, request, json_of(item), where)
    raise EngineError(f"{where} gave no answer")


def json_of(response: Any) -> bytes:
    """A response object as JSON. Raises the error that it stands for."""
    if hasattr(response, "model_dump_json"):
        body: bytes = response.model_dump_json().encode()
    else:
        body = json.dumps(response).encode()
    error = getattr(response, "error", None)
    if error is None and isinstance(response, Mapping):
        error = response.get("error")
    if error is not None:
        raise _error(error if isinstance(error, Mapping) else error.model_dump())
    return body


def _error(given: Mapping[str, Any]) -> PenstockError:
    """The error in Ray's form: `code` is the HTTP status."""
    message, code = str(given.get("message", "")), given.get("code")
    if isinstance(code, str) and not code.isdecimal():
        return by_kind(code, message, given.get("param"))
    status = int(code or 500)
    error = RequestError(message) if 400 <= status < 500 else EngineError(message)
    error.status, error.param = status, given.get("param")
    return error


def form_of(request: Mapping[str, Any]) -> tuple[str, bytes]:
    """The content type and the body of a transcription's form: `file`, and the other fields, of
    which a list is a part for each item. No value ends its part. Raises `RequestError`.
    """
    boundary = secrets.token_hex(16)
    parts = []
    for name, value in request.items():
        if name == "file" or value is None or value == "":
            continue
        several = isinstance(value, list | tuple)
        name = f"{name.removesuffix('[]')}[]" if several else name
        for one in value if several else [value]:
            text = one if isinstance(one, str) else json.dumps(one, default=str)
            parts.append(_part(boundary, f'name="{name.translate(_IN_QUOTES)}"', text.encode()))
    named = 'name="file"; filename="audio"'
    parts += [_part(boundary, named, _file_of(request)), f"--{boundary}--\r\n".encode()]
    return f"multipart/form-data; boundary={boundary}", b"".join(parts)


def _part(boundary: str, named: str, content: bytes) -> bytes:
    head = f"--{boundary}\r\nContent-Disposition: form-data; {named}\r\n\r\n"
    return b"".join([head.encode(), content, b"\r\n"])


def _file_of(request: Mapping[str, Any]) -> bytes:
    given = request.get("file")
    if isinstance(given, (bytes, bytearray)):
        return bytes(given)
    file: Any = getattr(given, "file", given)  # an upload of Starlette's
    if not hasattr(file, "read"):
        raise RequestError("file is missing", param="file")
    content: bytes = file.read()
    return content
