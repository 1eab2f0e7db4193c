"""Counts the calls of Penstock's functions for a row, and how deep they stand on each other.

A call is whatever enters a frame of Penstock's own code: a function, or a coroutine or a generator
that goes on. The figure of a row is that of many rows less that of few, so starts and ends do not
count. Figures depend on the code and on no clock, but for what comes together in one turn of the
event loop by chance. A new path is an `async` function of the number of units, in `PATHS`.

    python tools/count_calls.py token replica
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
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import penstock
from penstock.engines.base import Capabilities
from penstock.engines.templates.chat_template import ChatTemplate
from penstock.engines.token_engine import GenerateRequest, TokenEngine
from penstock.types import CompletionRequest, Delta, Usage

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


async def token(count: int) -> None:
    """A token of a streamed chat: from the engine, which makes one a step, to the HTTP server."""
    from penstock.serve.api.ingress import OpenAiIngress

    async with _local_model() as model:
        await _stream(OpenAiIngress({"m": model}), count)


async def replica(count: int) -> None:
    """The same token, from a replica behind a port of its own through the ingress in front."""
    from penstock.serve.api.ingress import OpenAiIngress

    async with _remote_model() as model:
        await _stream(OpenAiIngress({"m": model}), count)


async def call(count: int) -> None:
    """A row of a program, which a replica answers; 50 are under way at any time."""
    async with _remote_model() as model:
        rows = iter(range(count))

        async def ask() -> None:
            for row in rows:
                request = CompletionRequest(str(row), stream=False)
                async for _ in model.generate(request):
                    pass

        await asyncio.gather(*(ask() for _ in range(50)))


PATHS: dict[str, Work] = {one.__name__: one for one in (row, processor, token, replica, call)}


class Model(TokenEngine):
    """A model outside of Penstock, which has its answer at once: what it costs itself is not
    counted.
    """

    name = "counted"
    taken: asyncio.Event
    """Set by the client of a stream when it has a token."""

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
        for _ in range(1, request.sampling.max_tokens or 1 if request.stream else 1):
            yield [Delta(text="river ", token_ids=(1,))]
            # One wake-up a token, and each token goes its way alone.
            await (asyncio.sleep(0) if self.taken.is_set() else self.taken.wait())
            self.taken.clear()
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


def _model() -> dict[str, Any]:
    loading = {"model_id": "m", "model_source": "counted"}
    return {
        "model_loading_config": loading,
        "server_cls": _server_class(),
        "deployment_config": {"autoscaling_config": {"min_replicas": 1}},
    }


def _server_class() -> Any:
    from penstock.serve.models.server import LLMServer

    class Server(LLMServer):
        @classmethod
        def make_engine(cls, llm_config: Any) -> Model:
            return Model()

    return Server


@asynccontextmanager
async def _local_model() -> AsyncGenerator[Any, None]:
    from penstock.serve import LLMConfig
    from penstock.serve.models.local import LocalModel

    model = LocalModel(LLMConfig.from_dict(_model()))
    await model.start()
    yield model
    await model.stop(0.0)


@asynccontextmanager
async def _remote_model() -> AsyncGenerator[Any, None]:
    """A model with one replica, on loopback in this process."""
    from penstock.serve import LLMConfig
    from penstock.serve.config.settings import HttpSettings
    from penstock.serve.replicas.model import RemoteModel
    from penstock.serve.replicas.replica import ReplicaServer
    from penstock.serve.replicas.runtime import InMemoryStore

    config, store = LLMConfig.from_dict(_model()), InMemoryStore()
    server = ReplicaServer(
        config, replica_id="r", host="127.0.0.1", key="k", settings=HttpSettings(), desired=store
    )
    await server.start()

    class Runtime:
        listed = (server.info,)

        def current(self) -> Any:
            return self.listed

        async def obtain(self) -> Any:
            return server.info

    model = RemoteModel(config, Runtime(), key="k", desired=store)
    yield model
    await model.stop()
    await server.stop()


async def _stream(app: Any, tokens: int) -> None:
    """A streamed chat of so many tokens, for a client that takes each at once."""
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": "x"}],
        "stream": True,
        "max_tokens": tokens,
    }
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/chat/completions",
        "raw_path": b"/v1/chat/completions",
        "query_string": b"",
        "root_path": "",
        "scheme": "http",
        "http_version": "1.1",
        "server": ("127.0.0.1", 80),
        "client": ("127.0.0.1", 1),
        "headers": [(b"content-type", b"application/json")],
    }
    messages = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]
    Model.taken = asyncio.Event()
    events = 0

    async def receive() -> Any:
        if messages:
            return messages.pop()
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        nonlocal events
        if new := message.get("body", b"").count(b"data: {"):
            events += new
            Model.taken.set()

    await app(scope, receive, send)
    assert events > tokens, events


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
