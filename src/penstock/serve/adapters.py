"""LoRA adapters: finds them at their source, keeps local copies, and loads them into an engine.

Every adapter is copied into the cache under the digest of its content, even from a local directory.
So the content of a digest never changes, whatever happens to the original. The engine knows an
adapter as name@digest: a changed adapter has a new name, so the engine never uses cached data of
the old content (such as its prefix cache).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import re
import shutil
import tempfile
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from msgspec import Struct

from penstock import demo, env, private_files
from penstock.balance.backoff import Retry
from penstock.config import masked
from penstock.engines.base import LLMEngine
from penstock.engines.disk.sources import check_url, file_system, stamps
from penstock.errors import (
    ConfigError,
    EngineError,
    EngineStartError,
    EngineTimeoutError,
    ModelNotFoundError,
    PenstockError,
    RequestError,
    UnsupportedError,
    nearest,
)
from penstock.llm_config import LLMConfig, LoraConfig

T = TypeVar("T")
_log = logging.getLogger(__name__)

RECHECK_S = 5.0
"""Seconds until the source is checked again."""
MARK = "adapter_config.json"
"""The file that makes a directory an adapter."""
RETRY_DELAY_S = 0.5
LONGEST_RETRY_S = 30.0
LIST_TIMEOUT_S = 5.0
_FILES = (".json", ".safetensors", ".bin", ".txt", ".model", ".jinja")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
KEEP_S = 3600.0
"""An adapter in use within this time is never evicted: an engine may read it again."""
_ARRIVING, _LEAVING = ".arriving-", ".leaving-"


class AdapterVersion(Struct, frozen=True):
    """One adapter's content: `digest` identifies it, `path` is the directory with its files."""

    name: str
    digest: str
    path: str

    @property
    def loaded_as(self) -> str:
        """The engine's name for it."""
        return f"{self.name}@{self.digest}"


class _Known:
    """The last observation of one adapter."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.checked_at = float("-inf")
        self.stamp: object = None
        self.version: AdapterVersion | None = None


class AdapterStore:
    """The adapters of one model. `given` maps additional names to directories. `clock`
    is in seconds.

    Raises `MissingExtraError` if a URL needs a package that is not installed, `ConfigError` for an
    unknown kind of URL.
    """

    def __init__(
        self,
        config: LoraConfig | None,
        cache: AdapterCache,
        given: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config or LoraConfig()
        self.given = {**(given or {}), **self._config.adapters}
        """Names of adapters, and where they are, beside those of the dynamic path."""
        self._root = self._config.dynamic_lora_loading_path
        self._cache = cache
        self._clock = clock
        self._known: dict[str, _Known] = {}
        self._listed: list[str] = []
        self._listed_at = float("-inf")
        self._listing = asyncio.Lock()
        for url in filter(None, (self._root, *self.given.values())):
            check_url(url, "lora_config", "An adapter path")

    async def names(self) -> list[str]:
        """The names of all adapters, sorted. Lists the source at most every few seconds,
        and downloads nothing.

        If the source does not answer, its last listing stands: a list of models must not fail
        because of one of them.
        """
        async with self._listing:
            if self._root is not None and self._clock() - self._listed_at >= RECHECK_S:
                try:
                    async with asyncio.timeout(LIST_TIMEOUT_S):
                        self._listed = await asyncio.to_thread(self._list)
                except Exception as error:
                    _log.warning(
                        "the adapters in %s cannot be listed: %r", masked(self._root), error
                    )
                self._listed_at = self._clock()
        return sorted({*self.given, *self._listed})

    def put(self, name: str, location: str | None) -> None:
        """Know an adapter by its directory or URL from now on; no more if that is None.

        Raises `RequestError` for a name that no adapter can have, and as the class does.
        """
        if not _NAME.fullmatch(name):
            raise RequestError(f"'{name[:130]}' is no name of an adapter", param="lora_name")
        self._known.pop(name, None)
        if location is None:
            self.given.pop(name, None)
            return
        if "\0" in location:
            raise RequestError("a path has no null character", param="lora_path")
        try:
            check_url(location, "lora_config", "An adapter path")
        except ConfigError as error:
            raise RequestError(str(error), param="lora_path") from None
        self.given[name] = location

    async def fetch(self, name: str) -> AdapterVersion:
        """The adapter's current version, downloaded if it is new.

        Raises `ModelNotFoundError` for an unknown adapter, `EngineTimeoutError` or
        `EngineStartError` for a failed download.
        """
        location = self._location(name)
        if location is None:
            raise await self.unknown(name)
        known = self._known.setdefault(name, _Known())
        async with known.lock:
            if known.version is None or self._clock() - known.checked_at >= RECHECK_S:
                try:
                    await self._check(name, location, known)
                except FileNotFoundError:
                    # Requests for unknown names must not fill the memory.
                    self._known.pop(name, None)
                    raise await self.unknown(name) from None
                except PenstockError:
                    if known.version is None:
                        self._known.pop(name, None)
                        raise
                    # The cached version serves until the source answers again.
                known.checked_at = self._clock()
            assert known.version is not None
            return known.version

    async def check(self, name: str) -> None:
        """Raise `ModelNotFoundError` unless the adapter is there. Downloads nothing."""
        location = self._location(name)
        try:
            if location is None:
                raise FileNotFoundError(name)
            await self._patiently(lambda: _stamp(location), f"adapter '{name}'")
        except FileNotFoundError:
            raise await self.unknown(name) from None

    def _location(self, name: str) -> str | None:
        if name in self.given:
            return self.given[name]
        if self._root is None or not _NAME.fullmatch(name):
            return None
        return f"{self._root.rstrip('/')}/{name}"

    async def unknown(self, name: str) -> ModelNotFoundError:
        """The error of a name that no adapter has."""
        hint = nearest(name, await self.names())
        return ModelNotFoundError(
            f"no adapter '{name}'. {hint or 'This model has no adapters.'}", param="model"
        )

    async def _check(self, name: str, location: str, known: _Known) -> None:
        what, version = f"adapter '{name}'", known.version
        stamp = await self._patiently(lambda: _stamp(location), what)
        if stamp == known.stamp and version is not None and self._cache.touch(version.path):
            return
        digest, path = await self._patiently(lambda: self._download(location), what)
        known.stamp, known.version = stamp, AdapterVersion(name, digest, path)

    def _download(self, location: str) -> tuple[str, str]:
        fs, files = _files(location)
        return self._cache.take_in(fs, files)

    async def _patiently(self, work: Callable[[], T], what: str) -> T:
        """Run blocking `work` in a thread, with the configured timeout and number of tries."""
        tries, limit = self._config.max_download_tries, self._config.download_timeout_s

        async def attempt() -> T:
            async with asyncio.timeout(limit):
                return await asyncio.to_thread(work)

        retry = Retry(most=tries, first_s=RETRY_DELAY_S, longest_s=LONGEST_RETRY_S)
        final = FileNotFoundError, PenstockError
        try:
            return await retry.run(attempt, lambda failure: not isinstance(failure, final))
        except final:
            raise
        except Exception as error:
            if isinstance(error, TimeoutError) and limit is not None:
                raise EngineTimeoutError(
                    f"{what} did not come within {limit:g} s, {tries} times"
                ) from None
            raise EngineStartError(
                f"{what} cannot be read: {type(error).__name__}: {error}"
            ) from error

    def _list(self) -> list[str]:
        assert self._root is not None
        fs, root = file_system(self._root)
        try:
            found = fs.find(root, maxdepth=2)
        except FileNotFoundError:
            return []
        marked = (path.rsplit("/", 2) for path in found if path.endswith(f"/{MARK}"))
        return [
            parts[1]
            for parts in marked
            if parts[0].rstrip("/") == root.rstrip("/") and _NAME.fullmatch(parts[1])
        ]


def adapter_store(config: LLMConfig, model_source: str) -> AdapterStore:
    """The adapters of a configured model; the demo model brings its own."""
    given = (
        {name: str(demo.adapter_path(name)) for name in demo.ADAPTERS}
        if model_source == demo.MODEL_NAME
        else {}
    )
    return AdapterStore(config.lora_config, adapter_cache(), given)


def adapter_cache() -> AdapterCache:
    """The local copies of adapters, of all models."""
    return AdapterCache(Path(env.cache_dir(), "adapters"), env.adapter_cache_bytes())


def _files(location: str) -> tuple[Any, dict[str, Any]]:
    """File system and the adapter's files with details. Raises `FileNotFoundError`."""
    fs, root = file_system(location)
    found = fs.find(root, maxdepth=1, detail=True)
    files = {path: info for path, info in found.items() if path.endswith(_FILES)}
    if not any(path.endswith(f"/{MARK}") for path in files):
        raise FileNotFoundError(location)
    return fs, dict(sorted(files.items()))


def _stamp(location: str) -> list[tuple[str, ...]]:
    """A fingerprint that changes with the adapter, from metadata alone."""
    return stamps(_files(location)[1])


# Local copies
class AdapterCache:
    """A folder of adapters. Beyond `max_bytes` in total it evicts the least recently used."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self._max_bytes = max_bytes

    def take_in(self, fs: Any, files: Iterable[str]) -> tuple[str, str]:
        """Copy files from an fsspec file system. Returns the digest and the local directory."""
        private_files.make_folder(self.folder)
        arriving = tempfile.mkdtemp(prefix=_ARRIVING, dir=self.folder)
        try:
            content = hashlib.sha256()
            for path in files:
                name = path.rpartition("/")[2]
                copy = Path(arriving, name)
                fs.get_file(path, str(copy))
                copy.chmod(0o600)
                with copy.open("rb") as file:
                    content.update(f"{name}\0{copy.stat().st_size}\0".encode())
                    content.update(hashlib.file_digest(file, "sha256").digest())
            digest = content.hexdigest()[:16]
            home = self.folder / digest
            if not self.touch(str(home)):
                try:
                    os.rename(arriving, home)
                except OSError:
                    if not home.is_dir():  # else another process was faster
                        raise
        finally:
            shutil.rmtree(arriving, ignore_errors=True)
        self.clean()
        return digest, str(home)

    def touch(self, path: str) -> bool:
        """Mark an adapter as used. Returns whether it exists."""
        try:
            os.utime(path)
        except OSError:
            return False
        return True

    def clean(self) -> None:
        """Evict old adapters beyond the limit, and remove unfinished copies of killed processes."""
        now = time.time()
        adapters: list[tuple[float, int, Path]] = []
        for entry in list(self.folder.iterdir()):
            with contextlib.suppress(OSError):  # another process may clean at the same time
                used = entry.stat().st_mtime
                if not entry.name.startswith((_ARRIVING, _LEAVING)):
                    adapters.append(
                        (used, sum(file.stat().st_size for file in entry.iterdir()), entry)
                    )
                elif now - used > KEEP_S:
                    shutil.rmtree(entry, ignore_errors=True)
        excess = sum(size for _, size, _ in adapters) - self._max_bytes
        for used, size, entry in sorted(adapters):
            if excess <= 0 or now - used <= KEEP_S:
                return
            with contextlib.suppress(OSError):
                leaving = tempfile.mkdtemp(prefix=_LEAVING, dir=self.folder)
                os.rename(entry, Path(leaving, entry.name))  # so that nobody ever sees half of it
                shutil.rmtree(leaving, ignore_errors=True)
                excess -= size


# What an engine holds
class _Loaded:
    def __init__(self, version: AdapterVersion) -> None:
        self.version = version
        self.users = 0


class Adapters:
    """The adapters that `engine` holds, at most `limit`, least recently used first."""

    def __init__(self, engine: LLMEngine, limit: int) -> None:
        self._engine = engine
        self.limit = limit
        self._loaded: OrderedDict[str, _Loaded] = OrderedDict()
        self._loading = asyncio.Lock()
        self._short_of_room = False
        self._released = asyncio.Event()
        self.loads = 0
        """Number of loads into the engine so far."""

    @property
    def names(self) -> list[str]:
        """The engine's names of its adapters, least recently used first."""
        return list(self._loaded)

    @property
    def plain_names(self) -> list[str]:
        """Their names in requests, sorted."""
        return sorted({held.version.name for held in self._loaded.values()})

    @asynccontextmanager
    async def use(self, version: AdapterVersion) -> AsyncIterator[None]:
        """Load the adapter if it is missing, and keep it while the context lasts."""
        name = version.loaded_as
        held = self._loaded.get(name)
        if (
            held is None or self._short_of_room
        ):  # else a busy adapter would starve one that waits for room
            async with self._loading:
                held = self._loaded.get(name) or await self._load(name, version)
        held.users += 1
        self._loaded.move_to_end(name)
        try:
            yield
        finally:
            held.users -= 1
            self._released.set()

    async def reapply(self) -> None:
        """Reload adapters that a restarted engine has lost."""
        for name, held in self._loaded.items():
            if name not in self._engine.adapters:
                await self._engine.resolve_lora(name, held.version.path)
                self.loads += 1

    def forget_missing(self) -> None:
        """Forget adapters whose files were evicted from the cache: an engine cannot start with
        them. The next request for such an adapter fetches it again.
        """
        for name, held in list(self._loaded.items()):
            if not os.path.isdir(held.version.path):
                del self._loaded[name]
                self._engine.adapters.pop(name, None)

    async def drop(self, adapter: str) -> None:
        """Let go of an adapter in all versions that are loaded now, when nobody uses them any
        more.
        """
        leaving = {
            name: held for name, held in self._loaded.items() if held.version.name == adapter
        }
        while leaving:
            async with self._loading:
                self._released.clear()  # first: a user may leave while a version is removed
                for name, held in list(leaving.items()):
                    if self._loaded.get(name) is held:
                        if held.users:
                            continue
                        await self._remove(name)
                    del leaving[name]
            if leaving:
                await self._released.wait()

    def forget(self) -> None:
        """Forget all adapters after the engine was unloaded."""
        for name in self._loaded:
            self._engine.adapters.pop(name, None)
        self._loaded.clear()

    async def _load(self, name: str, version: AdapterVersion) -> _Loaded:
        for other, held in list(self._loaded.items()):
            if held.version.name == version.name and not held.users:
                await self._remove(other)  # its content is outdated
        while len(self._loaded) >= self.limit:
            unused = next((other for other, held in self._loaded.items() if not held.users), None)
            if unused is not None:
                await self._remove(unused)
                continue
            self._released.clear()
            self._short_of_room = True
            try:
                await self._released.wait()
            finally:
                self._short_of_room = False
        loading = asyncio.ensure_future(self._put(name, version))
        try:
            return await asyncio.shield(loading)
        except asyncio.CancelledError:
            await asyncio.wait([loading])  # the engine finishes it, and it takes room there
            raise

    async def _put(self, name: str, version: AdapterVersion) -> _Loaded:
        await self._engine.resolve_lora(name, version.path)
        self.loads += 1
        held = self._loaded[name] = _Loaded(version)
        return held

    async def _remove(self, name: str) -> None:
        held = self._loaded.pop(name)  # so that nobody begins to use it meanwhile
        try:
            with contextlib.suppress(UnsupportedError):
                await self._engine.remove_lora(name)
        except EngineError:  # the engine still has it
            self._loaded[name] = held
            self._loaded.move_to_end(name, last=False)
            raise
