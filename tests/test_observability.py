from __future__ import annotations

import io
import json
import logging
import sys
from typing import Any

import pytest

from penstock import observability
from penstock.errors import MissingExtraError
from penstock.observability import (
    JsonFormatter,
    PlainFormatter,
    enable_tracing,
    escaped,
    request_id,
    span,
)


def record(message: str = "GET / 200", **extra: Any) -> logging.LogRecord:
    made = logging.makeLogRecord(
        {"name": "penstock.access", "levelname": "INFO", "msg": message, **extra}
    )
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


def test_a_text_from_outside_is_one_line_of_the_log() -> None:
    assert escaped("/a\n12:00 INFO b\x1b[2J é 模") == "/a\\n12:00 INFO b\\x1b[2J é 模"


def test_spans_are_nothing_until_they_are_wanted() -> None:
    with span("request", {"traceparent": "00-1"}) as current:
        current.note({"http.route": "/"}, name="GET /", failed=True)


def test_tracing_without_its_extra_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "opentelemetry"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [])  # as if nothing were installed
    with pytest.raises(MissingExtraError, match=r"penstock\[otel\]"):
        enable_tracing()
    assert observability._tracer is None


class Full(io.StringIO):
    def write(self, text):
        raise OSError(28, "No space left on device")


def test_nothing_is_said_where_nobody_hears(monkeypatch, capsys):
    closed = io.StringIO()
    closed.close()
    for stream in (None, closed, Full()):
        monkeypatch.setattr(sys, "stderr", stream)
        observability.say("hello")
        assert not observability.is_terminal()
    assert capsys.readouterr().out == ""


def test_what_is_said_stands_on_standard_error(capsys):
    observability.say("hello")
    assert capsys.readouterr() == ("", "hello\n")
