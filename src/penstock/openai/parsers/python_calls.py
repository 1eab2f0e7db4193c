"""Calls as a Python list: `[name(argument="value"), other()]`."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator

from msgspec import Struct

from penstock.openai.parsers.json_calls import as_text
from penstock.openai.parsers.text import Decision, Offered, Piece, Pieces, Source, whole_call

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
    brackets = _Brackets()
    while (end := brackets.end(source.text)) < 0:
        if not (yield from source.wait()):
            return False
    calls = parsed_calls(source.text[:end])
    if not calls or not all(offered.has(name) for name, _ in calls):
        return False
    source.take(end)
    for name, arguments in calls:
        yield from whole_call(name, arguments)
    return True


class _Brackets:
    """Finds the end of a list in a text that grows."""

    def __init__(self) -> None:
        self._at = self._depth = 0
        self._quote = ""

    def end(self, text: str) -> int:
        """Where the list ends with which the text begins; -1 if it does not yet."""
        last = text.rfind("]", self._at) + 1
        for match in _NEXT.finditer(text, self._at, last):
            token = match[0]
            if self._quote:
                self._quote = "" if token == self._quote else self._quote
            elif token[0] in "\"'":
                self._quote = token
            elif token in "([{":
                self._depth += 1
            elif token in ")]}":
                self._depth -= 1
                if self._depth <= 0:
                    return match.end()
        self._at = max(self._at, last)
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
    return ".".join(_names(node.func)), as_text(arguments)


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
