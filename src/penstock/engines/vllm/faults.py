"""vLLM's errors as ours."""

from __future__ import annotations

from penstock.engines.vllm.library import (
    EngineDeadError as CoreDead,
    GracefulHTTPError,
    VLLMClientError,
)
from penstock.errors import (
    ContextLengthError,
    EngineDeadError,
    EngineError,
    OverloadedError,
    PenstockError,
    RequestError,
)

_TOO_LONG = frozenset({"input_tokens", "input_text", "max_tokens", "max_completion_tokens"})


def as_penstock_error(error: Exception, why_dead: str, *, preparing: bool = False) -> PenstockError:
    """The error to raise for what vLLM raised. While a request is prepared, a `ValueError` is the
    request's fault.
    """
    if isinstance(error, PenstockError):
        return error
    if isinstance(error, CoreDead):
        return EngineDeadError(why_dead)
    if isinstance(error, GracefulHTTPError):
        return OverloadedError(f"vLLM takes no more requests: {one_line(error)}")
    if isinstance(error, VLLMClientError) or (
        preparing and isinstance(error, (ValueError, TypeError, KeyError))
    ):
        parameter = getattr(error, "parameter", None)
        if parameter in _TOO_LONG and "context" in str(error):
            return ContextLengthError(f"prompt is too long: {one_line(error)}")
        return RequestError(
            f"vLLM refuses the request: {one_line(error)}",
            param=parameter if isinstance(parameter, str) else None,
        )
    cause = error.__cause__
    if isinstance(cause, Exception):
        return as_penstock_error(cause, why_dead, preparing=preparing)
    return EngineError(f"vLLM failed: {type(error).__name__}: {one_line(error)}".rstrip(": "))


def one_line(error: BaseException) -> str:
    """The text of an error without its line breaks, cut where it becomes a report."""
    text = " ".join(str(error).split())
    return text if len(text) <= 600 else f"{text[:600]} …"
