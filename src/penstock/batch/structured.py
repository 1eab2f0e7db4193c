"""Structured answers: a JSON Schema, the columns of its fields, and the check of each answer."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from penstock.errors import ConfigError, EngineError
from penstock.openai.json_schema import resolve
from penstock.parsing import TOO_DEEP, decode_json, is_too_deep, json_fault, read_file

Check = Callable[[Any], bool]
_TYPES: dict[str, Check] = {
    "string": lambda value: isinstance(value, str),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
}
_ANNOTATIONS = {"title", "description", "$schema", "$id", "$comment", "default", "examples"}
_UNDERSTOOD = {"type", "enum", "const", "properties", "required", "additionalProperties", "items"}
_AT_ONCE = 2
_places: dict[asyncio.AbstractEventLoop, asyncio.Semaphore] = {}

SLOW_STEPS = 50_000_000
"""About a second. An answer whose check may take more steps is checked in a separate process."""


class Schema:
    """A JSON Schema for answers.

    `text` is the schema as JSON, with its properties in the order in which an answer has them.
    `fields` are the columns that a parsed answer fills: the properties of an object, or the one
    column `parsed` for any other answer. Raises `ConfigError` if the schema is not valid, or has a
    pattern that cannot be matched in linear time.
    """

    def __init__(self, schema: Mapping[str, Any]) -> None:
        from penstock.batch.schema_validator import Validator

        if is_too_deep(schema):
            raise ConfigError(TOO_DEEP, field="schema")
        self.schema = dict(schema)
        try:
            self.text = json.dumps(self.schema, ensure_ascii=False)
            self.text.encode()
        except UnicodeEncodeError:
            raise ConfigError("holds text that is no valid Unicode", field="schema") from None
        except (TypeError, ValueError):
            raise ConfigError("holds a value that JSON has not", field="schema") from None
        self._validator = Validator(self.schema)
        self._accepts = _quick_check(self.schema)
        properties = self.resolve(self.schema).get("properties")
        self._is_object = bool(properties)
        self.properties: dict[str, Any] = (
            dict(properties) if properties else {"parsed": self.schema}
        )
        self.fields = tuple(self.properties)

    def parse(self, text: str) -> dict[str, Any]:
        """The fields of an answer. Raises `ValueError`, with words for people, if it does not
        fit.
        """
        value = _decoded(text)
        if self._accepts is None or not self._accepts(value):
            misfit = self._validator.misfit(value)
            if misfit is not None:
                raise ValueError(f"the answer does not fit the schema: {misfit}")
        return self._fields_of(value)

    async def read(self, text: str) -> dict[str, Any]:
        """As `parse`; a check that may take long runs in a separate process, off the event loop."""
        if self._validator.cost * len(text) <= SLOW_STEPS:
            return self.parse(text)
        if (why := await _check_in_subprocess(self.text, text)) is not None:
            raise ValueError(why)
        return self._fields_of(_decoded(text))

    def _fields_of(self, value: Any) -> dict[str, Any]:
        return value if self._is_object else {"parsed": value}

    def resolve(self, schema: Any) -> dict[str, Any]:
        """The part that a local `$ref` points to; a schema without one as it is."""
        for _ in range(32):
            if not isinstance(schema, dict) or not isinstance(schema.get("$ref"), str):
                break
            try:
                schema = resolve(self.schema, schema["$ref"])
            except LookupError:
                break
        return schema if isinstance(schema, dict) else {}


def _decoded(text: str) -> Any:
    """The JSON of an answer. Raises `ValueError`."""
    try:
        return msgspec.json.decode(text)
    except RecursionError:
        raise ValueError("the answer is nested too deeply to be read") from None
    except ValueError:
        raise ValueError(f"the answer is no JSON: {json_fault(text)}") from None


def load(schema: Mapping[str, Any] | str | os.PathLike[str] | None) -> Schema | None:
    """A schema from a mapping or a JSON file; None stays None. Raises `ConfigError`."""
    if schema is None:
        return None
    if isinstance(schema, Mapping):
        return _unwrapped(schema)
    try:
        value = decode_json(read_file(schema))
    except OSError as error:
        raise ConfigError(
            f"{os.fspath(schema)}: {error.strerror or error}", field="schema"
        ) from None
    except ValueError as error:
        raise ConfigError(f"{os.fspath(schema)} is no JSON: {error}", field="schema") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{os.fspath(schema)} holds no JSON object", field="schema")
    return _unwrapped(value)


def _unwrapped(schema: Mapping[str, Any]) -> Schema:
    for name in ("json_schema", "schema"):  # taken as a JSON Schema, it would allow any answer
        if isinstance(schema.get(name), Mapping):
            raise ConfigError(
                f"is OpenAI's form of one; give what stands in its '{name}'", field="schema"
            )
    return Schema(schema)


def _quick_check(schema: Any) -> Check | None:
    """A fast check for a plain schema, which never accepts what the validator rejects; None for
    another schema.

    Full validation costs more than all else that the job does for a row, and constrained answers
    nearly always fit.
    """
    if not isinstance(schema, dict) or schema.keys() - _ANNOTATIONS - _UNDERSTOOD:
        return None
    checks: list[Check] = []
    if "type" in schema:
        names = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        kinds = [_TYPES[name] for name in names]
        checks.append(
            kinds[0] if len(kinds) == 1 else lambda value: any(kind(value) for kind in kinds)
        )
    allowed = [schema["const"]] if "const" in schema else schema.get("enum")
    if allowed is not None:
        if not all(isinstance(choice, str) for choice in allowed):
            return None  # 1, 1.0 and true are equal in Python, but not in JSON
        checks.append(lambda value: isinstance(value, str) and value in allowed)
    if "items" in schema:
        each = _quick_check(schema["items"])
        if each is None:
            return None
        checks.append(lambda value: not isinstance(value, list) or all(map(each, value)))
    if schema.keys() & {"properties", "required", "additionalProperties"}:
        properties = {
            name: _quick_check(part) for name, part in schema.get("properties", {}).items()
        }
        if None in properties.values() or schema.get("additionalProperties", True) not in (
            True,
            False,
        ):
            return None
        checks.append(
            _object_check(
                properties,
                frozenset(schema.get("required", ())),
                schema.get("additionalProperties", True),
            )
        )
    return lambda value: all(check(value) for check in checks)


def _object_check(
    properties: Mapping[str, Check | None], required: frozenset[str], others: bool
) -> Check:
    def check(value: Any) -> bool:
        if not isinstance(value, dict):
            return True  # these keywords say nothing of other values than objects
        if not required <= value.keys():
            return False
        for name, part in value.items():
            accepts = properties.get(name)
            if accepts is None:
                if not others:
                    return False
            elif not accepts(part):
                return False
        return True

    return check


async def _check_in_subprocess(schema: str, text: str) -> str | None:
    """What is wrong with an answer; None if it fits. If the caller is cancelled, the process
    ends.
    """
    from penstock.engines.process import modules_of_this, python  # few answers need it

    loop = asyncio.get_running_loop()
    for other in [one for one in _places if one.is_closed()]:
        del _places[other]
    async with _places.setdefault(loop, asyncio.Semaphore(_AT_ONCE)):
        process = await asyncio.create_subprocess_exec(
            *python("-m", "penstock.batch.structured", str(os.getpid())),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,  # so that Ctrl-C does not reach it
            env=modules_of_this(),
        )
        try:
            out, _ = await process.communicate(json.dumps([schema, text]).encode())
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    if process.returncode:
        raise EngineError(f"the process that checks answers ended with {process.returncode}")
    why: str | None = json.loads(out)
    return why


def _main(parent: int) -> None:
    from penstock.engines.process import die_with_parent

    die_with_parent(parent)
    schema, text = json.load(sys.stdin)
    why = None
    try:
        Schema(json.loads(schema)).parse(text)
    except ValueError as error:
        why = str(error)
    json.dump(why, sys.stdout)


if __name__ == "__main__":
    _main(int(sys.argv[1]))
