"""A decoded JSON body, checked against the form of its endpoint."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, lru_cache
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from penstock.errors import RequestError, nearest
from penstock.openai.parameters.inside import check_inside
from penstock.openai.parameters.table import check_only, is_known

Body = TypeVar("Body", bound=Struct)


def parse_body(form: type[Body], body: Any) -> Body:
    """Check a decoded JSON body against its form. Raises `RequestError` naming the parameter, for
    a parameter of another server's API too (`penstock.openai.parameters.table`).

    Null counts as absent, for unknown names too: clients with typed bodies send the fields of
    every server's API.
    """
    if not isinstance(body, Mapping):
        raise RequestError("the request body must be a JSON object")
    known = _names(form)
    given = {name: value for name, value in body.items() if value is not None or known.get(name)}
    for name in [name for name in given if name not in known]:
        if not is_known(form, name, given.pop(name)):
            hint = _hint(form, str(name)[:200])
            raise RequestError(f"unknown parameter '{name}'. {hint}", param=str(name))
    try:
        checked = msgspec.convert(given, form, strict=True)
    except msgspec.ValidationError:
        checked = _with_whole_floats(form, given)
    check_only(checked)
    check_inside(form, given)
    return checked


def _with_whole_floats(form: type[Body], given: Mapping[str, Any]) -> Body:
    """JSON has one kind of number, and some languages write the integer 16 as 16.0. Top-level
    fields alone are read so. Raises `RequestError` if that is not what was wrong.
    """
    whole = {
        name: int(v) if isinstance(v, float) and v.is_integer() and abs(v) <= 2**53 else v
        for name, v in given.items()
    }
    try:
        return msgspec.convert(whole, form, strict=True)
    except msgspec.ValidationError:
        from penstock.validation import mismatch  # imported only for an error

        found = mismatch(form, whole)
        raise RequestError(str(found), param=found.place or None) from None


@lru_cache(maxsize=1024)
def _hint(form: type[Struct], name: str) -> str:
    """The parameter that was meant: another API's name for one of the form's, or the nearest.
    Cached, as all lines of a batch may have the same mistake.
    """
    names = getattr(form, "names", None)
    own = names.get(name) if isinstance(names, Mapping) else None
    return f"Did you mean '{own}'?" if own else nearest(name, _names(form))


@cache
def _names(form: type[Struct]) -> dict[str, bool]:
    """Field name → whether it is required. Cached, because inspecting a form takes milliseconds."""
    return {f.encode_name: f.required for f in msgspec.structs.fields(form)}
