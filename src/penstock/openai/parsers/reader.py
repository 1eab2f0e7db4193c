"""Turns the deltas of a request into deltas with thoughts and tool calls apart from the text."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b

from msgspec import structs

from penstock.openai.parsers.harmony import HarmonyCalls
from penstock.openai.parsers.json_calls import HERMES, forced_call
from penstock.openai.parsers.text import CallForm, Offered, Pieces, Source, Thinking
from penstock.types import Delta, ToolCallPart


class AnswerReader:
    """Reads the answers of one request, each under its `Delta.index`.

    `calls` None: calls stay text. `thinking` None: so do thoughts; `thinks`: the prompt has begun
    them. With `forced` the answer is one call without marks. With `one_call` everything after the
    first call is dropped. Call ids derive from `seed`: a retry under the same id gives the same.
    """

    def __init__(
        self,
        seed: str,
        *,
        calls: CallForm | None = HERMES,
        offered: Offered | None = None,
        thinking: Thinking | None = None,
        thinks: bool = False,
        forced: bool = False,
        one_call: bool = False,
    ) -> None:
        self._seed = seed
        self._calls = calls
        self._offered = offered or Offered()
        self._thinking = thinking
        self._thinks = thinks
        self._forced = forced
        self._one_call = one_call
        self._answers: dict[int, _Answer] = {}

    def translate(self, delta: Delta) -> Delta:
        """The delta, its text split into thoughts, answer and calls: all empty while a mark is
        unfinished.
        """
        answer = self._answers.get(delta.index)
        if answer is None:
            answer = self._answers[delta.index] = _Answer(
                f"{self._seed}/{delta.index}", self._pieces, self._one_call
            )
        reason = delta.finish_reason
        text, reasoning, parts = answer.read(delta.text, ended=reason is not None)
        # A stop string may cut a call as a limit does. A model may append white space to a forced
        # call.
        cut = delta.stop is not None or delta.stop_token is not None
        if answer.calls and (
            (reason == "stop" and (answer.whole or not cut))
            or (reason == "length" and self._forced and answer.whole)
        ):
            reason = "tool_calls"
        return structs.replace(
            delta,
            text=text,
            reasoning=delta.reasoning + reasoning,
            finish_reason=reason,
            tool_calls=parts,
        )

    def _pieces(self, source: Source) -> Pieces:
        by_message = isinstance(self._calls, HarmonyCalls) and not self._forced
        if self._thinking is not None and not by_message:
            yield from self._thinking.read(source, self._thinks)
        if self._forced:
            yield from forced_call(source, self._offered)
        elif self._calls is not None:
            yield from self._calls.read(source, self._offered)
        else:
            yield from source.rest()


class _Answer:
    """One answer: its parser, and how many calls it has so far."""

    def __init__(self, seed: str, pieces: Callable[[Source], Pieces], one_call: bool) -> None:
        self.calls = 0
        self.whole = False
        self._seed = seed
        self._source = Source()
        self._pieces = pieces(self._source)
        self._one_call = one_call

    def read(self, added: str, ended: bool) -> tuple[str, str, tuple[ToolCallPart, ...]]:
        """The new text, thoughts and calls."""
        self._source.text += added
        self._source.ended = ended
        text = reasoning = ""
        parts: dict[int, ToolCallPart] = {}
        for piece in self._pieces:
            if piece is None:
                break
            match piece.kind:
                case "thought":
                    reasoning += piece.text
                case "name" if not (self._one_call and self.calls):
                    parts[self.calls] = ToolCallPart(self.calls, "", self._id(), piece.text)
                    self.calls += 1
                    self.whole = False
                case "name":
                    self.calls += 1
                case "arguments" if not (self._one_call and self.calls > 1):
                    at = self.calls - 1
                    part = parts.get(at, ToolCallPart(at))
                    parts[at] = ToolCallPart(at, part.arguments + piece.text, part.id, part.name)
                case "whole":
                    self.whole = True
                case "text" if not (self.calls and (self._one_call or not piece.text.strip())):
                    text += piece.text
        return text, reasoning, tuple(parts.values())

    def _id(self) -> str:
        return "call_" + blake2b(f"{self._seed}/{self.calls}".encode(), digest_size=12).hexdigest()
