"""Every error that Penstock raises on purpose, as one tree.

PenstockError
├── ConfigError              a configuration value is wrong (also a ValueError)
│   └── UnknownStageError    a processor has no stage of that name
├── MissingExtraError        an optional package is missing (also an ImportError)
├── InputError               a data set cannot be read
├── OutputError              a result cannot be written
├── JobError                 a batch job cannot go on
│   ├── JobHeldError         another process runs it
│   ├── JobVersionError      another version of Penstock began it, and must end it
│   ├── JobMismatchError     a journal belongs to a different job; shows what differs
│   └── JobLimitError        it reached its limit of tokens, errors or time
├── UserCodeError            a function of the user's has failed
├── RequestError             the caller's request cannot be answered as it stands
│   ├── ContextLengthError   prompt and answer do not fit the model
│   ├── ModelNotFoundError   no such model or adapter
│   ├── UnsupportedError     this engine has no such ability
│   ├── NoKeyError           no API key, or a wrong one
│   ├── ForbiddenError       the key is known, but not for this
│   ├── NoRouteError         no such path
│   ├── NotStoredError       no such response, conversation, file or batch
│   ├── MethodError          the path has no such method
│   ├── BodyTooLargeError    the body is larger than the server takes
│   ├── ContentTypeError     the body is in a form that the path does not read
│   ├── QuarantinedError     it has killed the engine's process, so no engine gets it again
│   ├── SlowRequestError     its head or body came too slowly
│   ├── BatchExpiredError    a line had no answer when its batch expired
│   ├── BatchCancelledError  a line had no answer when its batch was cancelled
│   └── LineError            a line of a batch file is wrong, not the request in it
│       └── DuplicateIdError an earlier line has the same custom_id
├── EngineError              the engine failed
│   ├── EngineStartError     it could not be loaded
│   ├── EngineDeadError      its process ended
│   │   └── ReplicaLostError  its replica is unreachable, or vanished
│   ├── EngineTimeoutError   it did not answer in time
│   ├── AnswerFormError      its answer is not in the requested form
│   ├── OverloadedError      its queue is full
│   │   └── TooManyRequestsError  the server is at its limit of concurrent requests
│   ├── UnavailableError     it takes no requests now: asleep, or draining
│   │   └── ShuttingDownError     the whole server is shutting down
│   └── UpstreamError        another server, called over HTTP, refused or failed
└── ClientGoneError          the client closed the connection

`status` is the HTTP status of the error. `retryable`: whether the same request may succeed later.
`kind` is its name in result rows and in OpenAI-shaped error bodies. `retry_after` is the number of
seconds until a retry is worth it, if known. `given_up`: the request has used up its retries, though
it may succeed later. `ends_connection`: the server does not read the rest of the client's request.
`param` names the parameter that is wrong, if one is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping


class PenstockError(Exception):
    """Base of all errors raised on purpose. Its text is one line, meant for a person."""

    status: int = 500
    retryable: bool = False
    kind: str = "internal_error"
    retry_after: float | None = None
    given_up: bool = False
    ends_connection: bool = False
    param: str | None = None


class ConfigError(PenstockError, ValueError):
    """A configuration value is wrong. Ray's users catch it as a `ValueError`.

    `field` is the field's dotted path, `value` the given value, `hint` a sentence on what to do.
    """

    status = 400
    kind = "config_error"

    def __init__(
        self, message: str, *, field: str = "", value: object = None, hint: str = ""
    ) -> None:
        text = f"{field}: {message}" if field else message
        super().__init__(f"{text}. {hint}" if hint else text)
        self.field = field
        self.value = value
        self.hint = hint


class UnknownStageError(ConfigError):
    """A processor has no stage of that name."""

    kind = "unknown_stage"


class MissingExtraError(PenstockError, ImportError):
    """A package of an optional extra is missing. The message names the `pip` command."""

    kind = "missing_extra"

    def __init__(self, module: str, extra: str | None, needed_by: str = "") -> None:
        who = needed_by or "This"
        target = f"'penstock[{extra}]'" if extra else module
        super().__init__(
            f"{who} needs the package '{module}', which is not installed: pip install {target}"
        )
        self.module = module
        self.extra = extra


class InputError(PenstockError):
    """A data set cannot be read: missing, of an unknown form, or damaged."""

    status = 400
    kind = "input_error"


class OutputError(PenstockError):
    """A result cannot be written: no such folder, no permission, no space."""

    kind = "output_error"


class JobError(PenstockError):
    """A batch job cannot go on. Its results so far are kept, and the job can be resumed."""

    kind = "job_error"


class JobHeldError(JobError):
    """Another process runs the job."""

    kind = "job_held"


class JobVersionError(JobError):
    """The job's state has the form of another version of Penstock, which can go on with it."""

    kind = "job_version"


class JobMismatchError(JobError):
    """The journal beside the output belongs to a job with other input, model, prompt or parameters.

    `differences` maps each differing manifest field to its pair (journaled, requested).
    """

    status = 409
    kind = "job_mismatch"

    def __init__(self, message: str, differences: dict[str, tuple[object, object]]) -> None:
        super().__init__(message)
        self.differences = differences


class JobLimitError(JobError):
    """A job reached its limit of tokens, errors or time. It resumes under a wider limit."""

    kind = "job_limit"


class UserCodeError(PenstockError):
    """A function or stage of the user's has failed."""

    kind = "user_code_error"


class RequestError(PenstockError):
    """The request is wrong, as `param` or `status` tells. `headers` are those of the response."""

    status = 400
    kind = "invalid_request_error"
    headers: Mapping[str, str] = {}

    def __init__(self, message: str, *, param: str | None = None, status: int = 400) -> None:
        super().__init__(_bounded(message, _LONGEST_TEXT))
        self.param = _bounded(param, _LONGEST_PARAM) if param else param
        if status != 400:  # else that of the class
            self.status = status


class ContextLengthError(RequestError):
    """The prompt, or the prompt with the answer asked for, is longer than the model's context.
    Without a `param` it is about the prompt, whatever the API calls it.
    """

    kind = "context_length_exceeded"


def context_overflow(
    context: int,
    prompt: int | None,
    answer: int | None = None,
    *,
    what: str = "the prompt",
    param: str | None = None,
) -> ContextLengthError:
    """The error for a prompt of `prompt` tokens (None: too many), and for `answer` more tokens that
    were asked for, in a context of `context` tokens. `what` names the text.

    Clients know an overflow by these words only: litellm by the second sentence, LangChain and
    Anthropic's clients by the first.
    """
    too_long = ""
    if prompt is None:
        has = f"{what} alone has more"
        too_long = f"prompt is too long: more than {context} tokens. "
    else:
        has = f"{what} has {prompt}" + (f" and {answer} more were asked for" if answer else "")
        if prompt >= context:
            most = min(context, prompt - 1)  # an answer needs a token
            too_long = f"prompt is too long: {prompt} tokens > {most} maximum. "
        elif answer:
            param = param or "max_tokens"
    return ContextLengthError(
        f"{too_long}This model's maximum context length is {context} tokens; {has}.", param=param
    )


class ModelNotFoundError(RequestError):
    """No model or adapter of that name is known."""

    status = 404
    kind = "model_not_found"


class UnsupportedError(RequestError):
    """The engine has no such ability. The message names the engine."""

    kind = "unsupported"


class NoKeyError(RequestError):
    """The request has no API key, or a wrong one."""

    status = 401
    kind = "invalid_api_key"


class ForbiddenError(RequestError):
    """The key is known, but not for this route."""

    status = 403
    kind = "permission_denied"


class NoRouteError(RequestError):
    """There is no such path."""

    status = 404
    kind = "not_found"


class NotStoredError(RequestError):
    """The store has no such object (response, file, batch and so on), or none of this caller's."""

    status = 404
    kind = "not_stored"


class MethodError(RequestError):
    """The path has no such method. `allow` lists those that it has, separated by commas."""

    status = 405
    kind = "method_not_allowed"

    def __init__(self, message: str, allow: str = "") -> None:
        super().__init__(message)
        self.headers = {"allow": allow}


class BodyTooLargeError(RequestError):
    """The body is larger than the server takes."""

    status = 413
    kind = "request_too_large"


class ContentTypeError(RequestError):
    """The body is not in a form that the route reads."""

    status = 415
    kind = "unsupported_media_type"


class SlowRequestError(RequestError):
    """The head or the body of a request came too slowly."""

    status = 408
    kind = "request_timeout"
    ends_connection = True


class LineError(RequestError):
    """A line of an OpenAI Batch file is wrong, not the request in it."""

    kind = "invalid_line"


class DuplicateIdError(LineError):
    """An earlier line has the same `custom_id`."""

    kind = "duplicate_custom_id"


class BatchExpiredError(RequestError):
    """The line was not answered before its batch expired."""

    kind = "batch_expired"


class BatchCancelledError(RequestError):
    """The line was not answered before its batch was cancelled."""

    kind = "batch_cancelled"


class QuarantinedError(RequestError):
    """The request has killed the engine's process before, so no engine gets it again."""

    kind = "quarantined"


class EngineError(PenstockError):
    """The engine failed on a request that was well formed."""

    kind = "engine_error"


class EngineStartError(EngineError):
    """The engine could not be loaded: no such model, a damaged file, not enough memory."""

    status = 503
    kind = "engine_start_failed"


class EngineDeadError(EngineError):
    """The engine's process ended while the request was under way.

    `suspects`: whether a request may be the cause. It is false if the engine was stopped, or ended
    before it received this request. `killed`: whether a signal killed the process, as the kernel
    sends it when memory runs out.
    """

    status = 503
    retryable = True
    kind = "engine_dead"
    suspects = True
    killed = False

    def __init__(self, message: str = "", *, suspects: bool = True, killed: bool = False) -> None:
        super().__init__(message)
        self.suspects = suspects
        self.killed = killed


class ReplicaLostError(EngineDeadError):
    """A replica in another process or on another machine is unreachable, or vanished mid-answer."""


class EngineTimeoutError(EngineError):
    """The engine did not answer in time. `reached` is false if no connection to it was made."""

    status = 504
    retryable = True
    kind = "engine_timeout"
    reached: bool = True


class AnswerFormError(EngineError):
    """The answer is not the JSON that the request asked for, after all retries."""

    kind = "invalid_json"


class OverloadedError(EngineError):
    """The queue is full. `retry_after` is in seconds."""

    status = 503
    retryable = True
    kind = "overloaded"

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after: float = retry_after


class TooManyRequestsError(OverloadedError):
    """The server already answers its limit of requests."""

    status = 429
    kind = "rate_limit_exceeded"


class UnavailableError(EngineError):
    """The model takes no requests now: asleep, or draining. `retry_after` is in seconds."""

    status = 503
    retryable = True
    kind = "unavailable"

    def __init__(self, message: str, retry_after: float = 5.0) -> None:
        super().__init__(message)
        self.retry_after: float = retry_after


class ShuttingDownError(UnavailableError):
    """The whole server is shutting down."""

    kind = "shutting_down"


class ClientGoneError(PenstockError):
    """The client closed the connection. Only logs and metrics show this error, with status 499."""

    status = 499
    kind = "client_closed_request"


class UpstreamError(EngineError):
    """Another server, called over HTTP, refused or failed.

    `http_status` is the status of its answer, None without an answer; `body` is the beginning of
    that answer. `reached` is false if no connection was made.
    """

    status = 502
    kind = "upstream_error"
    reached: bool = True
    http_status: int | None = None
    body: str = ""

    def __init__(
        self,
        message: str,
        *,
        http_status: int | None = None,
        body: str = "",
        retryable: bool = False,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.http_status = http_status
        self.body = body
        self.retryable = retryable
        self.retry_after = retry_after


_LONGEST_TEXT, _LONGEST_PARAM = 2000, 200


def _bounded(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[:limit] + "…"


def text_of(error: BaseException) -> str:
    """An error's text on one printable line; a caller's class may make it long, or raise."""
    try:
        text = str(error)
    except Exception:
        return "(its text cannot be made)"
    lines = [line.strip() for line in _bounded(text, _LONGEST_TEXT).splitlines()]
    return printable(" ".join(filter(None, lines)))


def printable(text: str) -> str:
    """A text that every stream can encode: a stray byte of a file name becomes `\\udce9`."""
    return text.encode(errors="backslashreplace").decode()


def class_and_text(error: BaseException) -> str:
    """The name of an error's class, and its text: "ValueError: no such row"."""
    text = text_of(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def nearest(name: str, known: Iterable[str]) -> str:
    """A sentence that names the known word nearest to `name`, or else lists up to 50 of them."""
    from difflib import get_close_matches  # imported only for an error

    words = sorted(known)
    if match := get_close_matches(name[:_LONGEST_PARAM], words, n=1, cutoff=0.6):
        return f"Did you mean '{match[0]}'?"
    more = f" and {len(words) - 50:,} more" if len(words) > 50 else ""
    return f"Known: {', '.join(words[:50])}{more}" if words else ""


def by_kind(kind: str, message: str, param: str | None = None) -> PenstockError:
    """Rebuild an error from its `kind`, text and `param`, after it crossed a process border."""
    pending: list[type[PenstockError]] = [PenstockError]
    while pending:
        cls = pending.pop()
        if cls.__dict__.get("kind") == kind:
            error = cls.__new__(cls)
            Exception.__init__(error, message)
            error.param = param
            if isinstance(error, (OverloadedError, UnavailableError)):
                error.retry_after = 1.0
            return error
        pending.extend(cls.__subclasses__())
    return EngineError(message)
