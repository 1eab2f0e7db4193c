"""Checks a batch before any of it runs: one pass over its input, with the numbers of the lines that
are wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from penstock.batch.read.text import other_form
from penstock.batch.rows.openai_lines import ENDPOINTS, hash_key
from penstock.errors import nearest
from penstock.parsing import json_fault, repeated_key
from penstock.service.batches import Fault

MOST_FAULTS = 100
"""The most faults that are reported. A file with this many is read no further."""
_BLANK = b" \t\r\n"
_HEAD = 16
"""How many bytes are read to tell whether a file is text."""


class Checked(Struct):
    """What a file holds: its lines, the model of the first, and what is wrong."""

    lines: int = 0
    model: str = ""
    faults: list[Fault] = msgspec.field(default_factory=list)


class _Line(Struct):
    custom_id: Any = None
    method: Any = None
    url: Any = None
    body: Any = None


def check_input(
    path: Path, endpoint: str, *, max_lines: int, max_line_bytes: int, one_model: bool = True
) -> Checked:
    """Check a file of lines. `one_model`: all must name the same model. Holds about 70 bytes a
    line.
    """
    found = Checked()
    seen: set[int] = set()
    decode = msgspec.json.Decoder(dict[str, Any]).decode  # whole lines, as the batch reads them

    def fault(code: str, message: str, param: str | None = None) -> None:
        found.faults.append(Fault(code=code, message=message, line=number, param=param))

    number = 0
    with path.open("rb") as file:
        while (text := file.readline(max_line_bytes + 1)) and len(found.faults) < MOST_FAULTS:
            number += 1
            if len(text) > max_line_bytes:
                fault("line_too_long", f"a line has at most {max_line_bytes} bytes")
                break  # it would take long to find its end
            if number == 1:
                text = text.removeprefix(b"\xef\xbb\xbf")
                if (other := other_form(text[:_HEAD])) is not None:
                    message = f"The file is {other[0]}: a batch needs lines of JSON in UTF-8"
                    found.faults.append(Fault(code="invalid_file", message=message))
                    break
            if not text.strip(_BLANK):
                continue
            found.lines += 1
            if found.lines > max_lines:
                fault("too_many_requests", f"a batch has at most {max_lines} lines")
                break
            try:
                line = msgspec.convert(given := decode(text), _Line)
            except (ValueError, RecursionError, OverflowError):
                fault("invalid_json_line", f"This line is no JSON object: {_why(text)}")
                continue
            if (key := repeated_key(text)) is not None:
                fault("duplicate_key", f"The key '{key[:100]}' stands twice in one object")
                continue
            named = {name for name, value in given.items() if value is not None}
            if unknown := named.difference(_Line.__struct_fields__):
                name = min(unknown)[:100]
                hint = nearest(name, _Line.__struct_fields__)
                fault("unknown_parameter", f"The line has an unknown key '{name}'. {hint}", name)
                continue
            _check(line, endpoint, seen, found, fault, one_model=one_model)
    if not found.lines and not found.faults:
        found.faults.append(
            Fault(code="empty_file", message="The file has no lines: a batch needs at least one")
        )
    return found


def first_model(head: bytes) -> str:
    """The model that the first line of a file names; empty if the line cannot be read."""
    try:
        line = msgspec.json.decode(head.removeprefix(b"\xef\xbb\xbf"), type=_Line)
    except (ValueError, RecursionError, OverflowError):
        return ""
    return _model(line)


def _model(line: _Line) -> str:
    model = line.body.get("model") if isinstance(line.body, Mapping) else None
    return model if isinstance(model, str) else ""


def _check(
    line: _Line, endpoint: str, seen: set[int], found: Checked, fault: Any, *, one_model: bool
) -> None:
    missing = [name for name in _Line.__struct_fields__ if not getattr(line, name)]
    if missing:
        fault(
            "missing_required_parameter", f"The line has no {' and no '.join(missing)}", missing[0]
        )
        return
    if not isinstance(line.custom_id, str):
        fault("invalid_custom_id", "custom_id must be a text", "custom_id")
        return
    key = hash_key(line.custom_id)
    if key in seen:
        fault(
            "duplicate_custom_id",
            f"custom_id '{line.custom_id[:100]}' stands in an earlier line; each must be unique",
            "custom_id",
        )
    seen.add(key)
    if line.method != "POST":
        fault("invalid_method", f"method must be POST, not {str(line.method)[:100]!r}", "method")
    if line.url != endpoint:
        known = isinstance(line.url, str) and line.url in ENDPOINTS
        hint = f"the batch is for {endpoint}" if known else nearest(str(line.url)[:100], ENDPOINTS)
        fault("invalid_url", f"url is {str(line.url)[:100]!r}: {hint}", "url")
    if not isinstance(line.body, Mapping):
        fault("invalid_body", "body must be a JSON object", "body")
        return
    model = _model(line)
    if found.lines == 1:
        found.model = model
    elif one_model and model != found.model:
        fault(
            "mismatched_model",
            f"model is '{model[:100]}', and that of the first line '{found.model[:100]}': a batch"
            " is for one model",
            "body.model",
        )


def _why(text: bytes) -> str:
    try:
        value = msgspec.json.decode(text)
    except RecursionError:
        return "it is nested too deeply"
    except (ValueError, OverflowError):
        return json_fault(text)
    return "it is null" if value is None else f"it is a {type(value).__name__}"
