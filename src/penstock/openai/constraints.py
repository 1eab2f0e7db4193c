"""What a request says of its answer's form: `response_format`, `structured_outputs`, and vLLM's old
names `guided_json`, `guided_regex`, `guided_choice` and `guided_grammar`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct

from penstock.errors import RequestError, nearest
from penstock.types import StructuredOutput

MAX_CHOICES = 4096
GUIDED = ("guided_json", "guided_regex", "guided_choice", "guided_grammar")
"""The old names; each is a field of `structured_outputs` today."""


class StructuredOutputs(Struct, forbid_unknown_fields=True):
    """`structured_outputs`, vLLM's name for a constraint beyond `response_format`. One of the first
    five may be given; the others are refused. `grammar` is EBNF in GBNF's form, as XGrammar reads
    it.
    """

    json: dict[str, Any] | str | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    disable_any_whitespace: bool | None = None
    disable_additional_properties: bool | None = None
    whitespace_pattern: str | None = None
    structural_tag: str | dict[str, Any] | None = None


_KINDS = ("json", "regex", "choice", "grammar", "json_object")
_REFUSED = (
    *("disable_any_whitespace", "disable_additional_properties"),
    *("whitespace_pattern", "structural_tag"),
)


def one_constraint(
    response_format: dict[str, Any] | None,
    structured_outputs: StructuredOutputs | None,
    guided: Mapping[str, Any] | None = None,
    *,
    format_name: str = "response_format",
) -> StructuredOutput | None:
    """The constraint of a request. `guided` has the values under the old names, None where there is
    none; `format_name` is what the API calls `response_format`. Raises `RequestError` for two
    constraints at once, and names both.
    """
    by_format = parse_response_format(response_format)
    found = [] if by_format is None else [(format_name, by_format)]
    if structured_outputs is not None:
        found += _structured(structured_outputs)
    found += [
        (name, _constraint(name.removeprefix("guided_"), value, name, name))
        for name, value in (guided or {}).items()
        if value is not None
    ]
    if len(found) > 1:
        names = [name for name, _ in found]
        raise RequestError(
            f"an answer has one form: give one of {' and '.join(names)}", param=names[-1]
        )
    return found[0][1] if found else None


def _structured(given: StructuredOutputs) -> list[tuple[str, StructuredOutput]]:
    for name in _REFUSED:
        if getattr(given, name) not in (None, False):
            place = f"structured_outputs.{name}"
            raise RequestError(f"{place} is not supported", param=place)
    return [
        (
            f"structured_outputs.{name}",
            _constraint(name, value, f"structured_outputs.{name}", "structured_outputs"),
        )
        for name in _KINDS
        if (value := getattr(given, name)) not in (None, False)
    ]


def _constraint(kind: str, value: Any, place: str, param: str) -> StructuredOutput:
    """`place` names the value in errors raised here; `param` goes with the constraint, for the
    errors of those who enforce it.
    """
    match kind:
        case "json":
            if isinstance(value, str) and not _is_object(value):
                raise RequestError(
                    f"{place} must hold a JSON schema, an object, not {ascii(value)[:80]}",
                    param=place,
                )
            return StructuredOutput("json_schema", _schema_text(value), param=param)
        case "choice":
            if not value or not all(value):
                raise RequestError(f"{place} needs texts that are not empty", param=place)
            if len(value) > MAX_CHOICES:
                raise RequestError(f"{place} takes at most {MAX_CHOICES:,} texts", param=place)
            pattern = "|".join(map(re.escape, value))
            return StructuredOutput("regex", f"({pattern})", param=param)
        case "regex":
            return StructuredOutput("regex", value, param=param)
        case "grammar":
            return StructuredOutput("grammar", value, param=param)
    return StructuredOutput("json_object", param=param)


def parse_response_format(given: dict[str, Any] | None) -> StructuredOutput | None:
    """`response_format` as a constraint. Its types: text, json_object, json_schema, regex
    (`{"type": "regex", "pattern": …}`) and grammar (`{"type": "grammar", "grammar": …}`). A
    json_object with a `schema`, as llama.cpp has it, or a `value`, as huggingface_hub sends it, is
    a json_schema. Raises `RequestError`.
    """
    if given is None or given.get("type") == "text":
        return None
    kind = given.get("type")
    if kind == "json_object" and given.get("value") is not None:
        if given.get("schema") is not None:
            raise RequestError(
                "a json_object takes a 'schema' or a 'value', not both",
                param="response_format.value",
            )
        if not isinstance(given["value"], dict):
            raise RequestError(
                "the 'value' of a json_object must be an object", param="response_format.value"
            )
        given = {**given, "schema": given["value"]}
    if kind == "json_object" and given.get("schema") is None:
        return StructuredOutput("json_object")
    if kind in ("json_schema", "json_object"):
        holder = given.get("json_schema")
        schema = holder.get("schema") if isinstance(holder, dict) else given.get("schema")
        if not isinstance(schema, dict):
            raise RequestError(f"{kind} needs a 'schema' object", param=f"response_format.{kind}")
        return StructuredOutput("json_schema", _schema_text(schema))
    if kind == "regex":
        pattern = given.get("pattern", given.get("regex"))
        if not isinstance(pattern, str):
            raise RequestError("regex needs a 'pattern' text", param="response_format.pattern")
        return StructuredOutput("regex", pattern)
    if kind == "grammar":
        if not isinstance(given.get("grammar"), str):
            raise RequestError("grammar needs a 'grammar' text", param="response_format.grammar")
        return StructuredOutput("grammar", given["grammar"])
    hint = nearest(str(kind), ("text", "json_object", "json_schema", "regex", "grammar"))
    raise RequestError(
        f"unknown response_format type {kind!r}. {hint}", param="response_format.type"
    )


def _is_object(text: str) -> bool:
    try:
        return isinstance(msgspec.json.decode(text), dict)
    except (ValueError, RecursionError):
        return False


def _schema_text(schema: dict[str, Any] | str) -> str:
    return schema if isinstance(schema, str) else json.dumps(schema, ensure_ascii=False)
