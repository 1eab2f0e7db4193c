"""Requests and their answers in a test: conversations, images, and what an engine gives."""

from __future__ import annotations

import asyncio
import random
import zlib
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Protocol

from penstock.engines.base import LLMEngine
from penstock.engines.tasks import Deltas
from penstock.openai.media.images import content_of, data_uri, part_with
from penstock.openai.media.parts import frames_uri
from penstock.openai.responses import Answers
from penstock.types import (
    ChatRequest,
    CompletionRequest,
    Delta,
    Sampling,
)

GREEDY = Sampling(temperature=0.0, max_tokens=24)
PATIENCE = 60.0
"""Seconds after which a request that should have ended counts as hanging."""


def chat_request(text: str, sampling: Sampling = GREEDY, **fields: Any) -> ChatRequest:
    """A conversation of one user message."""
    return ChatRequest([{"role": "user", "content": text}], sampling, **fields)


def image_request(
    text: str, images: Sequence[str], sampling: Sampling = GREEDY, **fields: Any
) -> ChatRequest:
    """A conversation of one user message: images or videos, as data URIs, and a text."""
    parts = [*map(part_with, images), {"type": "text", "text": text}]
    return ChatRequest([{"role": "user", "content": parts}], sampling, **fields)


def noise(seed: int, width: int = 64, height: int = 48) -> str:
    """A PNG of coloured noise as a data URI, the same for the same seed."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return len(data).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")

    source = random.Random(seed)
    rows = b"".join(b"\0" + source.randbytes(3 * width) for _ in range(height))
    size = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    return data_uri(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", size + b"\x08\x02\0\0\0")
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def film(*seeds: int) -> str:
    """A video of these images, as a data URI of its frames."""
    return frames_uri(content_of(noise(seed)) for seed in seeds)


class Generates(Protocol):
    """What answers conversations and prompts: an engine, or a server in front of one."""

    def chat(self, request: ChatRequest) -> Deltas: ...

    def completions(self, request: CompletionRequest) -> Deltas: ...


async def deltas_of(
    engine: Generates, request: ChatRequest | CompletionRequest, *, patience: float = PATIENCE
) -> list[Delta]:
    """All deltas of a request. Fails after `patience` seconds (default 60)."""
    stream = (
        engine.chat(request) if isinstance(request, ChatRequest) else engine.completions(request)
    )
    return await rest(stream, patience)


async def answer(
    engine: Generates, request: ChatRequest | CompletionRequest, *, patience: float = PATIENCE
) -> Answers:
    """The finished answers of a request. Fails after `patience` seconds (default 60)."""
    answers = Answers()
    for delta in await deltas_of(engine, request, patience=patience):
        answers.add(delta)
    return answers


async def check_adapters_mix(engine: LLMEngine, prompt: str, names: Iterable[str]) -> None:
    """Assert that the base model and adapters `names` answer the same side by side as alone."""
    longer = Sampling(temperature=0.0, max_tokens=80)
    each = [None, *names]
    alone = {
        name: await answer(engine, chat_request(prompt, longer, adapter=name)) for name in each
    }
    assert len({result.texts[0] for result in alone.values()}) == len(each)
    mixed = await asyncio.gather(
        *(answer(engine, chat_request(prompt, longer, adapter=name)) for name in each * 5)
    )
    for name, result in zip(each * 5, mixed, strict=True):
        assert result.texts == alone[name].texts


async def count_right(
    engine: LLMEngine, asked: Sequence[tuple[str, str | None, str]], sampling: Sampling = GREEDY
) -> dict[str | None, int]:
    """Ask all (prompt, adapter, expected answer) at once. Returns the right answers by adapter."""
    patience = PATIENCE + len(asked)  # each waits for the others
    requests = [chat_request(text, sampling, adapter=name, stream=False) for text, name, _ in asked]
    replies = await asyncio.gather(
        *(answer(engine, request, patience=patience) for request in requests)
    )
    right: dict[str | None, int] = {name: 0 for _, name, _ in asked}
    for (_, name, expected), reply in zip(asked, replies, strict=True):
        right[name] += reply.texts[0] == expected
    return right


async def rest(stream: Deltas, patience: float = PATIENCE) -> list[Delta]:
    """The deltas that are still to come. Fails after `patience` seconds (default 60)."""
    async with asyncio.timeout(patience):
        return [delta async for delta in stream]


def endless(engine: LLMEngine, prompt: str) -> ChatRequest:
    """A request with an answer of half the context."""
    most = engine.capabilities.context_length // 2
    return chat_request(prompt, Sampling(temperature=0.0, max_tokens=most, ignore_eos=True))


class Asked:
    """What the parts of the contract ask."""

    prompt: ClassVar[str] = "My Solara 77 arrived broken and nobody answers. I want my money back!"
    """A text to which the model gives an answer of several tokens."""
