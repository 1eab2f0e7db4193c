"""A user's function as a text that changes when the function does."""

from __future__ import annotations

import dis
from collections.abc import Callable, Iterator
from functools import partial
from hashlib import blake2b
from types import CodeType, FunctionType
from typing import Any


def function_identity(function: Callable[..., Any] | None) -> str | None:
    """Its name, and a digest of what it does: the same in each process, another for a changed
    function.

    What it does is its code, its defaults, the texts, numbers and tuples of them that it refers to
    outside itself, and the functions of its module that it calls. Of what can change while it runs
    (lists, objects) it knows nothing.
    """
    if function is None:
        return None
    name = getattr(function, "__qualname__", type(function).__qualname__)
    module = getattr(function, "__module__", "")
    said = repr(_meaning(function, set()))
    return (
        f"{module}.{name}"
        f" {blake2b(said.encode(errors='backslashreplace'), digest_size=8).hexdigest()}"
    )


def _meaning(function: Any, seen: set[CodeType]) -> Any:
    if isinstance(function, partial):
        given = [_constant(value) for value in (*function.args, *function.keywords.values())]
        return _meaning(function.func, seen), given, list(function.keywords)
    plain = getattr(function, "__func__", function)
    if not isinstance(plain, FunctionType):
        # An object that can be called.
        plain = getattr(type(plain).__call__, "__func__", type(plain).__call__)
    if not isinstance(plain, FunctionType) or plain.__code__ in seen:
        return None
    seen.add(plain.__code__)
    defaults = [
        _constant(value)
        for value in (*(plain.__defaults__ or ()), *(plain.__kwdefaults__ or {}).values())
    ]
    outside = [
        (name, _meaning(value, seen) if isinstance(value, FunctionType) else _constant(value))
        for name, value in _outside(plain)
        if not isinstance(value, FunctionType) or value.__module__ == plain.__module__
    ]
    return _code(plain.__code__), defaults, outside


def _outside(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """What it refers to in its module and in the functions around it, but for what it sets
    itself.
    """
    names = {name: None for code in _codes(function.__code__) for name in code.co_names}
    own = {
        instruction.argval
        for code in _codes(function.__code__)
        for instruction in dis.get_instructions(code)
        if instruction.opname in ("STORE_GLOBAL", "STORE_DEREF")
    }
    known: dict[str, Any] = {
        name: function.__globals__[name] for name in names if name in function.__globals__
    }
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            known[name] = cell.cell_contents
        except ValueError:  # not set yet
            continue
    return ((name, known[name]) for name in sorted(known) if name not in own)


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for part in code.co_consts:
        if isinstance(part, CodeType):
            yield from _codes(part)


def _code(code: CodeType) -> Any:
    return (
        code.co_code,
        code.co_names,
        code.co_varnames,
        [_constant(part) for part in code.co_consts],
    )


def _constant(value: Any) -> Any:
    """A value that cannot change, in a form whose repr is the same in each process; others by their
    type.
    """
    if isinstance(value, CodeType):
        return _code(value)
    if isinstance(value, tuple):
        return [_constant(part) for part in value]
    if isinstance(value, frozenset):
        return sorted(repr(_constant(part)) for part in value)
    if (
        value is None
        or value is ...
        or isinstance(value, str | bytes | int | float | complex | bool)
    ):
        return value
    return type(value).__qualname__
