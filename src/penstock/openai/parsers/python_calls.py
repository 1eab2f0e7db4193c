"""Calls as a Python list: `[name(argument="value"), other()]`."""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Iterator

from msgspec import Struct

from penstock.openai.parsers.text import Decision, Offered, Piece, Pieces, Source

_BEGIN = re.compile(r"\[\s*[A-Za-z_][\w.]*\s*\(")
_MAY_BEGIN = re.compile(r"\[\s*(?:[A-Za-z_][\w.]*\s*)?")
_NEXT = re.compile(r"\\.|'''|\"\"\"|[\"'()\[\]{}]", re.DOTALL)
_LITERALS = {"true": True, "false": False, "null": None}


class PythonCalls(Struct, frozen=True):
    """A list of calls anywhere in the text, which marks may enclose."""

    openers: tuple[str, ...] = ()
    closers: tuple[str, ...] = ()

    @property
    def marks(self) -> tuple[str, ...]:
        return (*self.openers, *self.closers)

    def read(self, source: Source, offered: Offered) -> Pieces:
        found = False
        while True:
            opening, mark = yield from source.until(
                (*self.openers, "[", *(self.closers if found else ())), "text"
            )
            if not mark:
                return
            if mark in self.closers:
                continue
            if mark == "[":
                source.text = "[" + source.text
            else:
                opening += mark + (yield from source.skip())
            if source.text[:1] == "[" and (yield from _calls(source, offered)):
                found = True
            else:
                yield Piece("text", opening + (source.take(1) if mark == "[" else ""))


def _calls(source: Source, offered: Offered) -> Decision:
    """The list with which the text begins. False, with nothing taken, if it holds no calls."""
    while not _BEGIN.match(source.text):
        if not _MAY_BEGIN.fullmatch(source.text) or not (yield from source.wait()):
            return False
    end = seen = -1
    while end < 0:
        if (last := source.text.rfind("]")) > seen:
            seen, end = last, _end_of(source.text)
        elif not (yield from source.wait()):
            return False
    calls = parsed_calls(source.text[:end])
    if not calls or not all(offered.has(name) for name, _ in calls):
        return False
    source.take(end)
    for name, arguments in calls:
        yield Piece("name", name)
        yield Piece("arguments", arguments)
        yield Piece("whole", "")
    return True


def _end_of(text: str) -> int:
    """Where the list ends with which the text begins; -1 if it does not."""
    depth, quote = 0, ""
    for match in _NEXT.finditer(text):
        token = match[0]
        if quote:
            quote = "" if token == quote else quote
        elif token[0] in "\"'":
            quote = token
        elif token in "([{":
            depth += 1
        elif token in ")]}":
            depth -= 1
            if depth <= 0:
                return match.end()
    return -1


def parsed_calls(text: str) -> list[tuple[str, str]]:
    """Name and arguments (JSON text) of each call in a list; empty if it is not one of calls."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # backslashes that mean nothing
            tree = ast.parse(text, mode="eval").body
        if not isinstance(tree, ast.List):
            return []
        return [_parsed(node) for node in tree.elts]
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return []


def _parsed(node: ast.expr) -> tuple[str, str]:
    if not isinstance(node, ast.Call) or node.args:
        raise ValueError
    arguments = {}
    for keyword in node.keywords:
        if keyword.arg is None:
            raise ValueError
        arguments[keyword.arg] = ast.literal_eval(_with_literals(keyword.value))
    return ".".join(_names(node.func)), json.dumps(arguments, ensure_ascii=False)


def _names(node: ast.expr) -> Iterator[str]:
    if isinstance(node, ast.Attribute):
        yield from _names(node.value)
        yield node.attr
    elif isinstance(node, ast.Name):
        yield node.id
    else:
        raise ValueError


class _Literals(ast.NodeTransformer):
    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Constant(_LITERALS[node.id]) if node.id in _LITERALS else node


def _with_literals(node: ast.expr) -> ast.expr:
    """The expression with `true`, `false` and `null` as Python's constants."""
    changed = _Literals().visit(node)
    assert isinstance(changed, ast.expr)
    return changed
