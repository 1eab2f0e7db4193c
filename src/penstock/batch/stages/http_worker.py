"""The HTTP stage: each row's payload is sent, and what the server answers becomes a column."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta, Struct, field

from penstock import lazy
from penstock.batch.stages.base import StatefulStage
from penstock.batch.values.plain import for_json, plain
from penstock.config import Count, Options, Pause, Positive, Rate, Seconds, parse_options
from penstock.errors import ConfigError, EngineDeadError, RequestError, UpstreamError

if TYPE_CHECKING:
    from penstock.balance.limiter import Limiter
    from penstock.http.client import HttpClient, Reply


Body = bytes | Callable[[], Any]

CHARS_A_TOKEN = 4
_NO_FILES = frozenset({str, int, float, bool, list, type(None)})
_MOST_TOKENS = ("max_completion_tokens", "max_output_tokens", "max_tokens")


class HttpRequestOptions(Options, kw_only=True):
    """The options of `HttpRequests`. The first six are those of `ray.data.llm`.

    `headers` are sent to `url` beside the content type; `${NAME}` in a header is a variable of the
    environment. `qps` is the most requests a second. `max_retries` counts the tries after a failure
    that may pass; refusals for load (429, 503) are waited out in any case. The pauses between tries
    begin at `base_retry_wait_time_in_s` and double. `session_factory` makes the aiohttp session.

    `method` is POST, PUT or PATCH. At most `concurrency` requests are under way; with `adaptive`
    fewer while the server refuses for load. `requests_per_minute` and `tokens_per_minute` are
    further limits. All workers of one process that ask the same server at the same rates share the
    rates, and their `concurrency` is added up; if they are in several `processes`, each process
    keeps to its share of the rates. A try takes at most `timeout_s` seconds, a new connection
    `connect_timeout_s`, an answer `max_response_bytes`.
    """

    url: Annotated[str, Meta(min_length=1)]
    headers: dict[str, Any] = field(default_factory=dict)
    qps: Rate | None = None
    max_retries: Count = 0
    base_retry_wait_time_in_s: Pause = 1.0
    session_factory: Any = None
    method: Literal["POST", "PUT", "PATCH"] = "POST"
    concurrency: Positive = 64
    adaptive: bool = True
    requests_per_minute: Rate | None = None
    tokens_per_minute: Rate | None = None
    processes: Positive = 1
    timeout_s: Seconds = 300.0
    connect_timeout_s: Seconds = 10.0
    max_response_bytes: Positive = 64 << 20
    payload_column: str = "payload"
    output_column: str = "http_response"


class HttpRequests:
    """Sends the column `payload` of each row; the answer, decoded, is the column `http_response`.

    A payload is sent as JSON. A mapping that holds bytes (or mappings with bytes as `content`, and
    `filename` and `content_type`) is sent as a multipart form with these bytes as files.

    `await start()`, then any number of `process` at once, then `await stop()`. Raises `ConfigError`
    for a wrong option, and `MissingExtraError`.
    """

    shares_rates = True

    def __init__(self, url: str, headers: Mapping[str, str] | None = None, **further: Any) -> None:
        given = {"url": url, "headers": dict(headers or {}), **further}
        self.options = options = parse_options(HttpRequestOptions, given, "http_request")
        for name, value in options.headers.items():
            if not isinstance(value, str):
                raise ConfigError(
                    f"must be a text, not {type(value).__name__}", field=f"headers.{name}"
                )
        lazy.require("penstock.http.client", needed_by="The HTTP processor")
        from penstock.http.endpoint import endpoint
        from penstock.http.retries import Retries

        self._retries = Retries(
            max_retries=options.max_retries, base_wait_s=options.base_retry_wait_time_in_s
        )
        self._endpoint = endpoint(options.method, options.url)
        self._client: HttpClient | None = None
        self._limiter: Limiter | None = None

    async def start(self) -> None:
        """Open the connections. Raises `ConfigError` for a header whose variable is not set."""
        from penstock.balance.limiter import Limits, shared_limiter
        from penstock.http.client import HttpClient, Timeouts
        from penstock.http.endpoint import Headers

        options = self.options
        rates = [
            rate
            for rate in (options.qps and options.qps * 60, options.requests_per_minute)
            if rate is not None
        ]
        limits = Limits(
            concurrency=options.concurrency,
            requests_per_minute=min(rates, default=None),
            tokens_per_minute=options.tokens_per_minute,
            adaptive=options.adaptive,
        )
        self._limiter = shared_limiter(self._endpoint.shown, limits.shared_by(options.processes))
        self._client = HttpClient(
            Headers(options.headers),
            timeouts=Timeouts(connect_s=options.connect_timeout_s, try_s=options.timeout_s),
            max_body_bytes=options.max_response_bytes,
            session_factory=options.session_factory,
        )
        await self._client.open()

    async def process(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to one row: the decoded JSON; None for an empty body.

        Raises `RequestError` if the row has no payload that JSON can hold, and `UpstreamError`
        (with `http_status` and `body`) or `EngineTimeoutError` if the server fails.
        """
        name = self.options.payload_column
        payload = row.get(name)
        if payload is None:
            raise RequestError(f"the row has no '{name}'", param=name)
        body = self._form(payload) if _has_files(payload) else self._json(payload)
        tokens = _estimated(payload, body) if self.options.tokens_per_minute else 0.0
        reply = await self._retries.run(self._send, body, tokens)
        if tokens and self._limiter is not None:
            _charge(self._limiter, reply.body, tokens)
        return {self.options.output_column: self._decoded(reply)}

    async def stop(self) -> None:
        """Close the connections. Stopping twice is harmless."""
        client, self._client = self._client, None
        limiter, self._limiter = self._limiter, None
        if limiter is not None:
            limiter.leave(self.options.concurrency)
        if client is not None:
            await client.close()

    async def _send(self, body: Body, tokens: float) -> Reply:
        client, limiter = self._client, self._limiter
        if client is None or limiter is None:
            raise _stopped()
        data = body if isinstance(body, bytes) else body()
        reply = await client.send(self._endpoint, limiter, data=data, tokens=tokens)
        if b'"error"' in reply.body:
            failure = _error_in(reply.body, self._endpoint.shown)
            if failure is not None:
                from penstock.http.retries import is_throttling

                if is_throttling(failure):
                    limiter.refused()
                raise client.without_keys(failure, self._endpoint)
        return reply

    def _json(self, payload: Any) -> bytes:
        if isinstance(payload, (str, bytes)):  # JSON already
            return payload.encode() if isinstance(payload, str) else payload
        name = self.options.payload_column
        try:
            body = msgspec.json.encode(for_json(payload))
            if b'"NaN"' in body or b'Infinity"' in body:  # a text, or a float that JSON lacks
                json.dumps(plain(payload), allow_nan=False, default=str)
            return body
        except UnicodeEncodeError:
            why = "it holds text that is no valid Unicode"
        except RecursionError:
            why = "it is nested too deeply"
        except (TypeError, ValueError, OverflowError):
            why = "it holds a value or a key that JSON has not"
        raise RequestError(f"'{name}' cannot be sent as JSON: {why}", param=name)

    def _form(self, payload: Mapping[str, Any]) -> Body:
        """A function that makes the form, which every try needs anew."""
        from penstock.http.client import multipart

        plain = {
            str(key): value
            if _is_file(value) or isinstance(value, str)
            else self._json(value).decode()
            for key, value in payload.items()
        }
        return partial(multipart, plain)

    def _decoded(self, reply: Reply) -> Any:
        if not reply.body:
            return None
        try:
            return msgspec.json.decode(reply.body.removeprefix(codecs.BOM_UTF8))
        except (ValueError, RecursionError):
            if self._client is None:
                raise _stopped() from None
            raise self._client.not_json(reply, self._endpoint) from None


def _error_in(body: bytes, where: str) -> UpstreamError | None:
    """The error in an answer: one in OpenAI's form, or a body that has only a text named `error`.
    None if there is none: a good answer may have a field of that name too.
    """
    from penstock.http.complaints import as_error

    try:
        parsed = msgspec.json.decode(body.removeprefix(codecs.BOM_UTF8))
    except (ValueError, RecursionError):
        return None
    error = parsed.get("error") if isinstance(parsed, dict) else None
    if (isinstance(error, dict) and {"message", "code"} & error.keys()) or (
        isinstance(error, str) and error and len(parsed) == 1
    ):
        return as_error(parsed, where, body)
    return None


def _stopped() -> EngineDeadError:
    return EngineDeadError("the worker of the HTTP processor is not running")


def _has_files(payload: Any) -> bool:
    if not isinstance(payload, Mapping):
        return False
    # No generator: it would cost each row more than the rest of this function.
    for value in payload.values():  # noqa: SIM110
        if value.__class__ not in _NO_FILES and _is_file(value):
            return True
    return False


def _is_file(value: Any) -> bool:
    if not isinstance(value, Mapping):
        return isinstance(value, bytes | bytearray)
    content = value.get("content")
    named = value.get("filename") or value.get("content_type")
    return isinstance(content, bytes | bytearray) or (bool(named) and isinstance(content, str))


def _estimated(payload: Any, body: Body) -> float:
    """The estimated tokens of a request and its answer, before the answer tells the number."""
    most = 0.0
    if isinstance(payload, Mapping):
        given = [payload.get(name) for name in _MOST_TOKENS]
        most = next((float(number) for number in given if isinstance(number, int | float)), 0.0)
    return (len(body) if isinstance(body, bytes) else 0) / CHARS_A_TOKEN + most


def _charge(limiter: Limiter, body: bytes, estimate: float) -> None:
    """Correct the estimate if the answer tells its tokens, as OpenAI's do."""
    with suppress(ValueError, RecursionError):
        if used := msgspec.json.decode(body, type=_Charged).usage.total_tokens:
            limiter.charge(used - estimate)


class _Tokens(Struct):
    total_tokens: float = 0.0


class _Charged(Struct):
    usage: _Tokens = field(default_factory=_Tokens)


class HttpRequestStage(StatefulStage):
    """Sends `payload` and stores the answer in `http_response`."""

    fn = HttpRequests
    _required: ClassVar[Mapping[str, str]] = {"payload": "What is sent, as JSON."}
