"""Counts the calls of Penstock's functions for a row, and how deep they stand on each other.

A call is whatever enters a frame of Penstock's own code: a function, or a coroutine or a generator
that goes on. The figure of a row is that of many rows less that of few, so starts and ends do not
count. Figures depend on the code and on no clock, but for what comes together in one turn of the
event loop by chance. A new path is an `async` function of the number of units, in `PATHS`.

    python tools/count_calls.py row processor
    python tools/count_calls.py row --functions 40
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import penstock
from penstock.engines.base import Capabilities
from penstock.engines.text.chat_template import ChatTemplate
from penstock.engines.token_engine import GenerateRequest, TokenEngine
from penstock.types import Delta, Usage

HOME = os.path.dirname(os.path.abspath(penstock.__file__)) + os.sep

Work = Callable[[int], Awaitable[None]]
"""What does so many units of work: rows, tokens, requests."""


class Calls:
    """What was counted: calls by code, and the deepest stack under each, innermost first."""

    def __init__(self) -> None:
        self.by_code: Counter[CodeType] = Counter()
        self.stacks: dict[CodeType, list[CodeType]] = {}
        self._own: dict[CodeType, bool] = {}

    def note(self, frame: FrameType, event: str, _: Any) -> None:
        """The profile function: each call of Penstock's own code."""
        if event != "call" or not self._is_own(frame.f_code):
            return
        self.by_code[frame.f_code] += 1
        stack: list[CodeType] = []
        outer: FrameType | None = frame
        while outer is not None:
            if self._is_own(outer.f_code):
                stack.append(outer.f_code)
            outer = outer.f_back
        if len(stack) > len(self.stacks.get(frame.f_code, ())):
            self.stacks[frame.f_code] = stack

    def _is_own(self, code: CodeType) -> bool:
        known = self._own.get(code)
        if known is None:
            known = self._own[code] = code.co_filename.startswith(HOME)
        return known


@contextmanager
def counting() -> Iterator[Calls]:
    """Count the calls of this thread, and of those that start meanwhile."""
    calls = Calls()
    threading.setprofile(calls.note)
    sys.setprofile(calls.note)
    try:
        yield calls
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]


def measured(
    path: Work, few: int = 500, many: int = 1500
) -> tuple[float, list[str], list[tuple[float, str]]]:
    """The calls for a unit, its deepest stack from the outer end, and each function's calls."""
    asyncio.run(path(few))  # what is imported and compiled once
    with counting() as less:
        asyncio.run(path(few))
    with counting() as more:
        asyncio.run(path(many))
    each = {
        code: (count - less.by_code[code]) / (many - few) for code, count in more.by_code.items()
    }
    deepest = max((more.stacks[code] for code, count in each.items() if count > 0.5), key=len)
    functions = sorted(((count, _name(code)) for code, count in each.items()), reverse=True)
    return sum(each.values()), [_name(code) for code in reversed(deepest)], functions


def _name(code: CodeType) -> str:
    return f"{code.co_filename.removeprefix(HOME)}:{code.co_qualname}"


async def row(count: int) -> None:
    """A row of `penstock run`: JSON lines to JSON lines, each row its own request."""
    with tempfile.TemporaryDirectory() as folder:
        await penstock.arun(
            _lines(folder, count),
            f"{folder}/out.jsonl",
            prompt="{text}",
            max_tokens=16,
            engine=Model(),
        )


async def processor(count: int) -> None:
    """The same row through a processor, with functions before and after."""
    from penstock.batch import Job, OpenVINOEngineProcessorConfig, build_processor

    config = OpenVINOEngineProcessorConfig(engine=Model())
    made = build_processor(config, _preprocess, _postprocess)
    with tempfile.TemporaryDirectory() as folder:
        await Job(_lines(folder, count), f"{folder}/out.jsonl", processor=made).arun()


PATHS: dict[str, Work] = {"row": row, "processor": processor}


class Model(TokenEngine):
    """A model outside of Penstock, which has its answer at once: what it costs itself is not
    counted.
    """

    name = "counted"

    def __init__(self) -> None:
        super().__init__("counted")
        self.template = ChatTemplate(None)
        self.capabilities = Capabilities(
            frozenset({"chat", "completions"}), 4096, max_concurrency=64
        )

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def check_health(self) -> None: ...

    async def continue_prompt(self, request: GenerateRequest) -> AsyncGenerator[list[Delta], None]:
        yield [
            Delta(
                text="valve river",
                token_ids=tuple(b"valve river"),
                finish_reason="stop",
                usage=Usage(12, 11),
            )
        ]

    async def tokenize(self, text: str) -> list[int]:
        return list(text.encode())

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        return bytes(token_ids).decode()


def _lines(folder: str, count: int) -> str:
    path = Path(folder, "in.jsonl")
    path.write_text(
        "".join(
            json.dumps({"id": n, "text": f"{n} the invoice shows a late order"}) + "\n"
            for n in range(count)
        )
    )
    return str(path)


def _preprocess(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": row["text"]}],
        "sampling_params": {"temperature": 0, "max_tokens": 16},
    }


def _postprocess(row: dict[str, Any]) -> dict[str, Any]:
    return {"id": row["id"], "text": row["text"], "response": row["generated_text"]}


def main() -> None:
    """Measure the paths that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("paths", nargs="*", help=", ".join(PATHS))
    parser.add_argument(
        "--functions", type=int, default=0, help="show so many of the most frequent, and the stack"
    )
    args = parser.parse_args()
    for name in args.paths or PATHS:
        calls, deepest, each = measured(PATHS[name])
        print(f"{name}: {calls:.1f} calls, deepest stack {len(deepest)}")
        if args.functions:
            print("  " + " > ".join(deepest))
        for count, function in each[: args.functions]:
            print(f"  {count:7.2f}  {function}")


if __name__ == "__main__":
    main()
