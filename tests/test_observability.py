from __future__ import annotations

import json
import logging
import sys
from contextlib import contextmanager
from typing import Any

import pytest

from penstock import observability
from penstock.errors import MissingExtraError
from penstock.observability import JsonFormatter, PlainFormatter, enable_tracing, request_id, span, use_tracer


def record(message: str = "GET / 200", **extra: Any) -> logging.LogRecord:
    made = logging.makeLogRecord({"name": "penstock.access", "levelname": "INFO", "msg": message, **extra})
    return made


def test_a_json_line_holds_the_request_and_its_fields() -> None:
    token = request_id.set("r1")
    try:
        line = json.loads(JsonFormatter().format(record(fields={"status": 200, "path": "/a\nb"})))
    finally:
        request_id.reset(token)
    assert line["request_id"] == "r1"
    assert (line["status"], line["path"], line["level"]) == (200, "/a\nb", "info")
    assert "request_id" not in json.loads(JsonFormatter().format(record()))


def test_an_exception_is_told_in_both_forms() -> None:
    try:
        raise ValueError("broken")
    except ValueError:
        failed = record("oops", exc_info=sys.exc_info(), fields={"model": "m"})
    assert "ValueError: broken" in json.loads(JsonFormatter().format(failed))["exception"]
    first, _, rest = PlainFormatter().format(failed).partition("\n")
    assert first.endswith("oops model=m")
    assert "ValueError: broken" in rest


def test_spans_are_nothing_until_they_are_wanted() -> None:
    with span("request", path="/") as note:
        note(status=200)


def test_tracing_without_its_extra_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "opentelemetry"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [])  # as if nothing were installed
    with pytest.raises(MissingExtraError, match=r"penstock\[otel\]"):
        enable_tracing()
    assert observability._tracer is None


def test_spans_go_to_the_programs_own_tracer(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    class Span:
        def set_attributes(self, attributes: dict[str, Any]) -> None:
            made.append(attributes)

    class Tracer:
        @contextmanager
        def start_as_current_span(self, name: str, *, context: Any, attributes: dict[str, Any]) -> Any:
            made.append((name, context, attributes))
            yield Span()

    class Propagate:
        @staticmethod
        def extract(headers: dict[str, str]) -> str:
            return headers["traceparent"]

    monkeypatch.setattr(observability, "require", lambda *_: Propagate)
    use_tracer(Tracer())
    try:
        with span("request", {"traceparent": "00-1"}, path="/") as note:
            note(status=200)
    finally:
        use_tracer(None)
    assert made == [("request", "00-1", {"penstock.path": "/"}), {"penstock.status": 200}]
