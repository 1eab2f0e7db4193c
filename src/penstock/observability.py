"""Logs, lines for a person on standard error, and spans.

Logs are plain lines or JSON, each with the id of its request. Spans are OpenTelemetry's if the
operator turned them on; otherwise they cost nothing.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any, Literal

from penstock.lazy import require

request_id: ContextVar[str] = ContextVar("penstock_request_id", default="")
"""The id of the current task's request."""

_queue_times: ContextVar[list[float] | None] = ContextVar("penstock_queue_times", default=None)
_tracer: Any = None


def note_queue_time(seconds: float) -> None:
    """Record how many seconds the current request waited in the queue. Admission calls this."""
    if (times := _queue_times.get()) is not None:
        times.append(seconds)


def gather_queue_times() -> list[float]:
    """A new list for `note_queue_time`, in this task and in tasks that it starts."""
    times: list[float] = []
    _queue_times.set(times)
    return times


def escaped(text: str) -> str:
    """A text from outside for a line of the log: line ends and control characters are escaped."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class JsonFormatter(logging.Formatter):
    """One JSON object a line. The record's own `fields` stand beside the common ones."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": (
                time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
                + f".{int(record.msecs):03d}Z"
            ),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if current := request_id.get():
            line["request_id"] = current
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


class PlainFormatter(logging.Formatter):
    """A line for people: time, level, message, then the record's fields."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        """The record as a line, with those of its fields that the message does not already show."""
        text = super().format(record)
        fields = getattr(record, "fields", {})
        in_message = ("method", "path", "status")
        shown = [f"{name}={value}" for name, value in fields.items() if name not in in_message]
        if current := request_id.get():
            shown.append(f"id={current}")
        first, line_end, rest = text.partition("\n")
        return " ".join([first, *shown]) + line_end + rest


def configure_logging(form: Literal["plain", "json"] = "plain", level: str = "info") -> None:
    """Send the logs of Penstock and of the HTTP server to stderr. For programs, not libraries."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else PlainFormatter())
    for name in ("penstock", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
        logger.setLevel(level.upper())


def say(text: str) -> None:
    """Print lines for a person. Never fails: standard error may be closed, or its pipe full."""
    if sys.stderr is not None:  # `print` would take standard output
        with suppress(OSError, ValueError):  # ValueError: closed
            print(text, file=sys.stderr, flush=True)


def counted(number: int, noun: str) -> str:
    """A number with its noun: "1 row", "1,200 rows"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def is_terminal() -> bool:
    """Whether standard error is a terminal."""
    try:
        return sys.stderr is not None and sys.stderr.isatty()
    except ValueError:  # closed
        return False


def enable_tracing() -> None:
    """Send spans to an OTLP collector, which OpenTelemetry's own variables
    configure (`OTEL_EXPORTER_OTLP_ENDPOINT` …).

    Raises `MissingExtraError` without the extra `otel`.
    """
    trace, sdk, export, resources, otlp = (
        require(f"opentelemetry.{name}", "otel", needed_by="Tracing")
        for name in (
            *("trace", "sdk.trace", "sdk.trace.export", "sdk.resources"),
            "exporter.otlp.proto.http.trace_exporter",
        )
    )
    provider = sdk.TracerProvider(resource=resources.Resource.create({"service.name": "penstock"}))
    provider.add_span_processor(export.BatchSpanProcessor(otlp.OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    use_tracer(provider.get_tracer("penstock"))


def use_tracer(tracer: Any) -> None:
    """Make spans with the program's own OpenTelemetry tracer; None turns spans off."""
    global _tracer
    _tracer = tracer


class Span:
    """An open span; a no-op without a tracer. Attributes of None are dropped."""

    def __init__(self, current: Any = None) -> None:
        self._current = current

    @property
    def recording(self) -> bool:
        """Whether a tracer records this span; otherwise its attributes need not be collected."""
        return self._current is not None

    def note(self, attributes: Mapping[str, Any], *, name: str = "", failed: bool = False) -> None:
        """Add attributes, under OpenTelemetry's names if it has one. Optionally rename the span, or
        mark it as failed.
        """
        if self._current is None:
            return
        self._current.set_attributes(
            {key: value for key, value in attributes.items() if value is not None}
        )
        if name:
            self._current.update_name(name)
        if failed:
            self._current.set_status(require("opentelemetry.trace", "otel").StatusCode.ERROR)


@contextmanager
def span(name: str, headers: Mapping[str, str] | None = None) -> Iterator[Span]:
    """A server span around the body. It continues the trace that `headers` name."""
    if _tracer is None:
        yield Span()
        return
    parent = require("opentelemetry.propagate", "otel").extract(dict(headers or {}))
    kind = require("opentelemetry.trace", "otel").SpanKind.SERVER
    with _tracer.start_as_current_span(name, context=parent, kind=kind) as current:
        yield Span(current)
