"""The cache of one job: where it is, and which answers in it are valid for the job."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import xxhash

from penstock import demo
from penstock.batch.read.files import is_url
from penstock.batch.rows.row import Outcome, Row
from penstock.engines.base import LLMEngine, conversion_of
from penstock.engines.disk.sources import local_source

if TYPE_CHECKING:
    from penstock.batch.cache.database import AnswerDatabase, RemoteAnswers

_VERSION = 1
_WHOLE_BYTES = 1 << 30
_BLOCK = 1 << 20
_SAMPLE = 1 << 16


@dataclass(frozen=True)
class CacheChoice:
    """The cache at `place`, a directory or URL, for answers of `engine`.

    `asked` is all that decides an answer beside the request and the engine. The cache keeps at most
    `most_bytes`, and no answer older than `days`.
    """

    place: str
    engine: LLMEngine
    asked: dict[str, Any]
    most_bytes: int
    days: float

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[SharedCache, None]:
        """The cache, open as long as the context lasts. Raises `PenstockError`."""
        cache = await asyncio.to_thread(self._open)
        try:
            yield cache
        finally:
            await asyncio.to_thread(cache.answers.close)

    def _open(self) -> SharedCache:
        # Imported here: most jobs need neither module, nor SQLite.
        from penstock.batch.cache.database import AnswerDatabase, RemoteAnswers

        bounds: Any = {"most_bytes": self.most_bytes, "seconds": 86400 * self.days}
        answers = (
            RemoteAnswers(self.place, **bounds)
            if is_url(self.place)
            else AnswerDatabase(Path(self.place), **bounds)
        )
        named = msgspec.json.encode(
            [_VERSION, model_identity(self.engine), self.asked], enc_hook=str, order="sorted"
        )
        return SharedCache(answers, blake2b(named, digest_size=16).digest())


class SharedCache:
    """Answers of one model to deterministic requests. `model` is its identity."""

    def __init__(self, answers: AnswerDatabase | RemoteAnswers, model: bytes) -> None:
        self.answers = answers
        self._named = blake2b(model, digest_size=16)

    def get(self, row: Row) -> Outcome | None:
        """The answer to a row's request, if there is one. Requests with an adapter have none, as
        its files may change.
        """
        return None if _has_adapter(row) else self.answers.get(self._digest(row))

    def put(self, row: Row, outcome: Outcome) -> None:
        if not _has_adapter(row):
            self.answers.put(self._digest(row), outcome)

    def _digest(self, row: Row) -> bytes:
        named = self._named.copy()
        named.update(row.digest)
        return named.digest()


def _has_adapter(row: Row) -> bool:
    return bool(getattr(row.request, "adapter", None))  # only requests for texts may have one


def model_identity(engine: LLMEngine) -> dict[str, Any]:
    """What decides an engine's answers: its kind, its options, the content of its model's files,
    and how these are converted. A model whose files are not here (a hub's id, another server's) is
    known by its name.
    """
    source = local_source(engine.model_source) if engine.name != "remote" else engine.model_source
    if source == demo.MODEL_NAME:
        path = demo.model_path("openvino" if engine.name == "openvino" else "huggingface")
    else:
        path = Path(os.path.expanduser(source))
    where = {
        name: engine.engine_kwargs[name]
        for name in ("base_url", "upstreams")
        if name in engine.engine_kwargs
    }
    conversion = conversion_of(engine.name, engine.model_source)
    return {
        "engine": engine.name,
        **({} if conversion is None else {"conversion": conversion}),
        "model": _content(path) if os.path.exists(path) else source,
        "options": engine.deciding_kwargs | where,
        "deterministic": engine.deterministic,
    }


def _content(path: Path) -> str:
    """A digest of a model's files. If they have more than 1 GiB together, it covers only their
    sizes, times of change, beginnings and ends.
    """
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    whole = sum(file.stat().st_size for file in files) <= _WHOLE_BYTES
    digest = xxhash.xxh3_128()
    for file in files:
        found = file.stat()
        name = os.fspath(file.relative_to(path)) if file != path else ""
        digest.update(f"{name}\0{found.st_size}\0".encode(errors="surrogateescape"))
        with open(file, "rb") as content:
            if whole:
                while block := content.read(_BLOCK):
                    digest.update(block)
            else:
                digest.update(f"{found.st_mtime_ns}\0".encode())
                digest.update(content.read(_SAMPLE))
                content.seek(max(0, found.st_size - _SAMPLE))
                digest.update(content.read(_SAMPLE))
    return digest.hexdigest()
