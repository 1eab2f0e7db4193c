"""A process that tries constraints: `python -m penstock.engines.openvino.constraints.worker FD
PARENT`.

It turns a constraint into a grammar, compiles it and generates some tokens with it, within limits
on memory and processor time. A constraint that kills the process is refused.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import resource
import signal
import sys
from collections.abc import Sequence

from penstock.engines.base import Capabilities
from penstock.engines.openvino.constraints.json_grammar import json_grammar
from penstock.engines.openvino.constraints.regex import RegexWriter, parse
from penstock.engines.openvino.constraints.writer import (
    TABLES,
    Grammar,
    choice,
    literal,
    too_large,
)
from penstock.engines.openvino.options import LoadTokenizer, decode_to_constraint_worker, reason_of
from penstock.engines.process import (
    Call,
    Failed,
    Ready,
    Reply,
    ToParent,
    WorkerPipe,
    end_with_parent,
    leave_signals_to_parent,
)
from penstock.errors import EngineStartError, PenstockError, RequestError, class_and_text

_log = logging.getLogger(__name__)
_TRIED_TOKENS = 40
_TABLE_ENTRIES, _FEWEST_TABLES = 3_000_000, 12
"""Limit on the entries of all tables that a grammar may have for counts: about a second of work."""
_OUT_OF_MEMORY = ("bad_alloc", os.strerror(errno.EAGAIN))
"""Texts in the engine's errors when an allocation or a new thread is refused."""
_OBJECT = {"type": "object"}
_KEPT = 100
"""The cache is emptied after this many grammars."""


def main(fd: int, parent: int) -> None:
    """Serve the pipe `fd` until it closes."""
    end_with_parent(fd, parent)
    leave_signals_to_parent()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pipe = WorkerPipe(fd, decode_to_constraint_worker)
    try:
        load = pipe.read(wait=True)[0]
        try:
            prover = Prover(load)
        except Exception as error:
            return pipe.write([Failed(0, EngineStartError.kind, reason_of(error))])
        pipe.write([Ready(Capabilities(frozenset(), 0, 1), None, {})])
        _limit_memory(load.memory_bytes)
        while True:
            for call in pipe.read(wait=True):
                # A signal ends the process when its threads have used this processor time.
                signal.setitimer(signal.ITIMER_PROF, load.seconds)
                pipe.write([_answer(prover, call)])
    except (EOFError, BrokenPipeError, ConnectionResetError):  # the parent has closed the pipe
        return


class Prover:
    """Tries constraints on the tokenizer of one model."""

    def __init__(self, load: LoadTokenizer) -> None:
        import openvino_genai as genai

        from penstock.engines.openvino.constraints.grammar_cache import BarePipeline

        tokenizer = genai.Tokenizer(load.path)
        vocabulary = max(tokenizer.get_vocab().values()) + 1
        self._pipeline = BarePipeline(tokenizer, vocabulary)
        self._tables = max(_FEWEST_TABLES, min(TABLES, _TABLE_ENTRIES // vocabulary))
        self._tried = 0

    def prove(
        self,
        kind: str,
        spec: str,
        checked: bool,
        after: Sequence[str] = (),
        openers: Sequence[str] = (),
        triggers: Sequence[str] = (),
    ) -> str:
        """A constraint's grammar, which has compiled and generated tokens. Raises `RequestError`
        for a damaged or too large constraint, `MemoryError` at the limit.
        """
        grammar = grammar_of(kind, spec, checked, self._tables)
        if after or triggers:
            self._try(grammar)  # thoughts or text alone would try nothing
        if triggers:
            grammar = triggered(grammar, triggers)
        if after:
            grammar = after_thoughts(grammar, after, openers)
        self._try(grammar)
        self._tried += 1
        if self._tried % _KEPT == 0:
            self._pipeline.empty_cache()
        return grammar

    def _try(self, grammar: str) -> None:
        try:
            self._pipeline.compile(grammar, _TRIED_TOKENS)
        except MemoryError:
            raise
        except Exception as error:
            if any(sign in str(error) for sign in _OUT_OF_MEMORY):
                raise MemoryError from None
            raise RequestError(
                f"the constraint cannot be compiled: {reason_of(error)}", param="response_format"
            ) from None


_ROOT = re.compile(
    r'"(?:[^"\\]|\\.)*"|\[(?:[^\]\\]|\\.)*\]|#[^\n]*|(?<![\w.-])root(?![\w.-])', re.DOTALL
)
"""The rule's name, and where else the word may stand: literals, classes of characters, comments."""


def grammar_of(kind: str, spec: str, checked: bool, tables: int = TABLES) -> str:
    """The grammar of a constraint of `types.StructuredOutput`'s kinds. Raises `RequestError`."""
    if kind == "grammar":  # EBNF already
        return spec
    try:
        if kind == "regex":
            grammar = Grammar(tables)
            return grammar.text(RegexWriter(grammar, in_json=False).body(parse(spec)))
        schema = json.loads(spec, parse_float=_number) if kind == "json_schema" else _OBJECT
        return json_grammar(schema, checked, tables)
    except RecursionError:
        raise too_large("it is nested too deep") from None


def _number(text: str) -> float:
    """Floats as integers: to JSON Schema 2.0 is 2. Numbers of more than 53 bits stay as written."""
    number = float(text)
    return int(number) if number.is_integer() and abs(number) < 2**53 else number


def after_thoughts(grammar: str, after: Sequence[str], openers: Sequence[str]) -> str:
    """The grammar of an answer that thinks freely up to one of `after`, then follows `grammar`.

    Thoughts begin with one of `openers` and may be left out, or, without openers, begin at once.
    """
    ends = ", ".join(map(literal, after))
    thoughts = "free_thoughts [ \\n]{0,4}"
    if openers:
        thoughts = f"([\\n]{{0,2}} {choice(map(literal, openers))} {thoughts})?"
    return (
        f"root ::= {thoughts} answer_to_hold\n"
        f"free_thoughts ::= TagDispatch(stop_eos=false, stop_str=({ends}),"
        " loop_after_dispatch=false)\n"
        f"{_with_root(grammar, 'answer_to_hold')}"
    )


def triggered(grammar: str, triggers: Sequence[str]) -> str:
    """The grammar of free text in which one value of `grammar`, or a list of them, follows each of
    `triggers`.
    """
    tags = ", ".join(f"({literal(trigger)}, call)" for trigger in triggers)
    listed = '"[" [ \\n]{0,2} value ("," [ \\n]{0,2} value)* [ \\n]{0,2} "]"'
    return (
        f"root ::= TagDispatch({tags}, stop_eos=true, loop_after_dispatch=true)\n"
        f"call ::= [ \\n]{{0,2}} (value | {listed})\n"
        f"{_with_root(grammar, 'value')}"
    )


def _with_root(grammar: str, name: str) -> str:
    """The grammar as rules of which `name` is the root."""
    return _ROOT.sub(lambda found: name if found[0] == "root" else found[0], grammar)


def _answer(prover: Prover, call: Call) -> ToParent:
    try:
        return Reply(call.id, prover.prove(*call.args))
    except PenstockError as error:
        return Failed.of(call.id, error)
    except MemoryError:
        os.abort()  # the state of the process cannot be trusted
    except Exception as error:
        _log.exception("a constraint cannot be translated")  # our fault: log it
        message = f"the constraint cannot be translated: {class_and_text(error)}"
        return Failed(call.id, RequestError.kind, message, "response_format")


def _limit_memory(more: int) -> None:
    """Let the process grow by `more` bytes from now on."""
    with open("/proc/self/status") as status:
        held = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmData:"))
    resource.setrlimit(resource.RLIMIT_DATA, (held + more, resource.RLIM_INFINITY))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
