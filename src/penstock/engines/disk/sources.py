"""Files that an engine's library loads itself: where models and LoRA adapters are, and the local
copies of models in buckets.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from penstock import demo, lazy, private_files
from penstock.config import masked
from penstock.engines.base import LLMEngine
from penstock.env import cache_dir
from penstock.errors import (
    ConfigError,
    EngineStartError,
    MissingExtraError,
    ModelNotFoundError,
    PenstockError,
    RequestError,
    nearest,
)
from penstock.observability import say
from penstock.parsing import json_fault

_log = logging.getLogger(__name__)
STREAMED = frozenset({"runai_streamer", "runai_streamer_sharded", "tensorizer"})
"""Values of vLLM's `load_format` that read a bucket themselves."""


def model_for(source: str) -> str:
    """The directory or hub id of a `model_source`. Copies the files of a bucket first. Raises
    `EngineStartError`.
    """
    source = local_source(source)
    if source == demo.MODEL_NAME:
        return str(demo.model_path("huggingface"))
    path = Path(source).expanduser()
    if os.path.exists(path):
        return str(path)
    if source.startswith(("/", ".", "~")):
        raise EngineStartError(f"there is no model directory '{source}'")
    return source


def stated_context_length(source: str) -> int | None:
    """The context in tokens that the files of a local model state; None if they do not."""
    return _stated(source, "max_position_embeddings")


def stated_vocabulary(source: str) -> int | None:
    """The size of the vocabulary that the files of a local model state; None if they do not."""
    return _stated(source, "vocab_size")


def _stated(source: str, name: str) -> int | None:
    path = demo.model_path("huggingface") if source == demo.MODEL_NAME else description(source)
    try:
        config = json.loads((path / "config.json").read_bytes())
        found = config.get("text_config", config).get(name)
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    return found if isinstance(found, int) and found > 0 else None


# What is known of a model whose files are elsewhere
HUB_ID = re.compile(r"(?P<name>[\w-][\w.-]*/[\w.-]+)(@(?P<revision>[\w./-]+))?")
_DESCRIBING = ("config.json", "modules.json")
_MOST_DESCRIBING = 1 << 20
_described: dict[str, Path] = {}
"""Folders with the describing files of sources, for the life of this process."""


def describe(source: str) -> None:
    """Copy the small files of a bucket's or a hub's model that state its tasks and its vocabulary.
    May take as long as the network does. What cannot be read stays unknown.
    """
    url = source if "://" in source else f"hf://{source}"
    if source in _described or not (url is source or HUB_ID.fullmatch(source)):
        return
    if os.path.exists(os.path.expanduser(source)):
        return
    try:
        check_url(url, "model_source", "A model at")
        fs, root = file_system(url)
        found = {}
        for name in _DESCRIBING:
            with suppress(FileNotFoundError):
                path = f"{root.rstrip('/')}/{name}"
                if fs.info(path)["size"] <= _MOST_DESCRIBING:
                    found[name] = fs.cat_file(path)
    except Exception as error:  # of several kinds: each file system has its own
        _log.debug("'%s' cannot be read: %s", masked(source), error)
        return
    if _DESCRIBING[0] in found:
        folder = Path(mkdtemp(prefix="penstock-model-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        for name, content in found.items():
            (folder / name).write_bytes(content)
        _described[source] = folder


def description(source: str) -> Path:
    """Where the files of a model are that state what it is: in its own folder, or where `describe`
    has put them.
    """
    return _described.get(source) or Path(source).expanduser()


CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"


def check_adapter(name: str, path: str, most: Any = None) -> None:
    """Raise `ModelNotFoundError` naming what is missing or wrong in the PEFT directory `path`, also
    for a rank above `most`, an engine's `max_lora_rank`.
    """
    directory = Path(path)
    if not os.path.isdir(directory):
        raise ModelNotFoundError(f"adapter '{name}': there is no directory '{path}'", param="model")
    for file in (CONFIG, WEIGHTS):
        if not (directory / file).is_file():
            raise ModelNotFoundError(f"adapter '{name}': '{path}' has no {file}", param="model")
    content = (directory / CONFIG).read_bytes()
    try:
        settings = json.loads(content)
    except (ValueError, RecursionError):
        raise ModelNotFoundError(
            f"adapter '{name}': {CONFIG} is not valid JSON: {json_fault(content)}", param="model"
        ) from None
    rank = settings.get("r") if isinstance(settings, dict) else None
    if not isinstance(rank, int) or rank < 1 or settings.get("peft_type", "LORA") != "LORA":
        raise ModelNotFoundError(
            f"adapter '{name}': {CONFIG} does not describe a LoRA adapter", param="model"
        )
    if isinstance(most, int) and rank > most:
        raise ModelNotFoundError(
            f"adapter '{name}' has rank {rank}, and engine_kwargs.max_lora_rank is {most}",
            param="model",
        )


def adapter_path(engine: LLMEngine, name: str, where: str | None = None) -> str | None:
    """The directory of an adapter, or None if the engine knows it already.

    `where` is looked at first. Raises `ModelNotFoundError`, and `RequestError` if the engine has
    another adapter of the name than the one there.
    """
    here = where is not None and os.path.isdir(where)
    if name in engine.adapters:
        known = engine.adapters[name]
        if where is not None and here and os.path.realpath(known) != os.path.realpath(where):
            raise RequestError(
                f"the engine has an adapter '{name}' from {known} already; give the one in {where}"
                " another name, or use another engine",
                param="model",
            )
        return None
    if here:
        return where
    if engine.model_source == demo.MODEL_NAME:
        try:
            return str(demo.adapter_path(name))
        except ValueError as error:
            if not os.path.isdir(name):
                raise ModelNotFoundError(str(error), param="adapter") from None
    if os.path.isdir(name):
        return name
    place = "it is no directory" if where is None else f"there is no directory '{where}'"
    raise ModelNotFoundError(
        f"no adapter '{name}': {place}, and the engine has none of that name", param="model"
    )


def local_adapter(name: str, url: str) -> str:
    """The local copy of an adapter in a bucket. Raises `ModelNotFoundError`, and as
    `local_source`.
    """
    try:
        return local_source(url)
    except EngineStartError as error:
        raise ModelNotFoundError(f"no adapter '{name}': {error}", param="model") from error


# Buckets
STAMPS = (
    *("size", "mtime", "created", "ETag", "etag", "LastModified", "last_modified"),
    *("updated", "md5Hash", "blob_id"),
)
"""What file systems tell of a file that changes when its content does."""


def file_system(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL or a local path, and the path on it."""
    import fsspec  # imported only for files elsewhere

    fs, path = fsspec.core.url_to_fs(os.path.expanduser(fsspec_url(url)))
    fs.invalidate_cache()  # fsspec's cached listing would hide a change
    return fs, path


def stamps(files: dict[str, Any]) -> list[tuple[str, ...]]:
    """A fingerprint that changes with the files, of their details on their file system."""
    return [(path, *(str(info.get(name)) for name in STAMPS)) for path, info in files.items()]


def check_url(url: str, field: str, what: str) -> None:
    """Raise `ConfigError` for an unknown kind of URL, `MissingExtraError` where its package is
    missing. A path is no URL.
    """
    scheme, separator, _ = fsspec_url(url).partition("://")
    if not separator:
        return
    from fsspec.registry import get_filesystem_class, known_implementations, registry

    if scheme in registry:
        return
    if scheme not in known_implementations:
        raise ConfigError(
            f"unknown kind of URL '{scheme}://'",
            field=field,
            hint=nearest(scheme, ("s3", "gs", "abfss", "hf")),
        )
    module = known_implementations[scheme]["class"].partition(".")[0]
    if find_spec(module) is None:
        raise MissingExtraError(module, lazy.EXTRAS.get(module), f"{what} {scheme}://")
    if module == "fsspec":
        get_filesystem_class(scheme)  # built-in kinds are small, and may still lack a package


_copied: dict[str, str] = {}
"""The last copy of each source: an engine that died starts again without its bucket."""


def local_source(source: str) -> str:
    """The local copy of a bucket's model, a directory or a GGUF file, made now if it is new or has
    changed. Any other source as it is.

    Raises `EngineStartError`, `ConfigError` or `MissingExtraError`.
    """
    if "://" not in source:
        return source
    check_url(source, "model_source", "A model at")
    shown = masked(source)
    try:
        fs, root = file_system(source)
        if "file" in fs.protocol or "local" in fs.protocol:
            return str(root)
        files = _files(fs, root)
        if not files:
            raise EngineStartError(f"there are no files at '{shown}'")
        digest = hashlib.sha256(json.dumps([source, stamps(files)]).encode()).hexdigest()[:12]
        name = root.rstrip("/").rpartition("/")[2] or "model"
        target = Path(cache_dir()) / "models" / f"{name}-{digest}"
        if not target.is_dir():
            private_files.make_folder(target.parent)
            with locked(target, lambda _: None):
                if not target.is_dir():
                    say(f"copying {shown} (once) …")
                    with atomic_folder(target) as partial:
                        _copy(fs, root, files, partial)
    except PenstockError:
        raise
    except Exception as error:  # of several kinds: each file system has its own
        failure = f"'{shown}' cannot be read: {type(error).__name__}: {error}"
        if os.path.exists(earlier := _copied.get(source, "")):
            _log.warning("%s; the copy in '%s' stands", failure, earlier)
            return earlier
        raise EngineStartError(failure) from error
    _copied[source] = str(target / name) if root in files else str(target)
    return _copied[source]


def copy_files(url: str, destination: str) -> None:
    """Copy the files of a bucket to a local directory, over what is there. Raises as
    `local_source`.
    """
    check_url(url, "extra_files", "Files at")
    try:
        fs, root = file_system(url)
        files = _files(fs, root)
        if not files:
            raise EngineStartError(f"there are no files at '{masked(url)}'")
        _copy(fs, root, files, Path(destination).expanduser())
    except PenstockError:
        raise
    except Exception as error:
        raise EngineStartError(
            f"'{masked(url)}' cannot be copied: {type(error).__name__}: {error}"
        ) from error


def _files(fs: Any, root: str) -> dict[str, Any]:
    """All files at and below `root`, with what the file system tells of them."""
    try:
        return dict(sorted(fs.find(root, detail=True).items()))
    except FileNotFoundError:
        return {}


def _copy(fs: Any, root: str, files: dict[str, Any], folder: Path) -> None:
    copies = []
    for path in files:
        below = path.removeprefix(root).lstrip("/") if path != root else path.rpartition("/")[2]
        if ".." in below.split("/"):
            raise EngineStartError(f"the bucket's file '{path}' would leave its folder")
        copies.append(folder / below)
    for parent in {copy.parent for copy in copies}:
        parent.mkdir(parents=True, exist_ok=True)
    fs.get(list(files), [str(copy) for copy in copies])


def fsspec_url(url: str) -> str:
    """A URL as fsspec has it: Ray's `azure://`, `abfss://` and `pyarrow-s3://` have other names."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url
    scheme = scheme.removeprefix("pyarrow-")
    return f"{'abfs' if scheme in ('azure', 'abfss') else scheme}://{rest}"


def partial_of(target: Path) -> Path:
    """A new folder to make `target` in. What killed processes left is removed: hold the lock."""
    for leftover in target.parent.glob(f"{target.name}.partial-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    partial = target.with_name(f"{target.name}.partial-{os.getpid()}")
    private_files.make_folder(partial)
    return partial


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """A new folder that becomes `target` if the context ends well: `target` is complete whenever it
    exists. Hold the lock.
    """
    partial = partial_of(target)
    try:
        yield partial
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def locked(target: Path, stage: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of `target`, so that two processes do not convert the same model."""
    with open(target.with_name(f"{target.name}.lock"), "w", opener=private_files.opener) as file:
        if not private_files.lock(file.fileno()):
            stage("waiting for another process that converts it")
            private_files.lock(file.fileno(), wait=True)
        yield
