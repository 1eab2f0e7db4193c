"""Models on this machine's disk: fetched from a hub, converted, or copied from a bucket; listed,
measured and removed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

from msgspec import Struct

from penstock.env import cache_dir
from penstock.errors import ConfigError, EngineStartError, ModelNotFoundError, nearest
from penstock.lazy import require

_BESIDE = ("*.json", "*.txt", "*.model", "*.jinja", "[0-9]_*/*")
"""What is fetched with any weights. sentence-transformers names the folders of a model's parts by
their number: "1_Pooling", "2_Dense_1024".
"""
_WEIGHTS = (
    ("*.safetensors",),
    ("openvino_*.xml", "openvino_*.bin"),
    ("pytorch_model*.bin",),
    ("model.onnx", "onnx/model.onnx"),
)
"""Forms of weights, the best first: one of them is fetched."""
_HUB_SECONDS = 10.0
_HUB_FOLDER = "models--"
_AT_ONCE = 1 << 20


class CachedModel(Struct, frozen=True):
    """A model on disk. `nbytes` is its size there; `changed` is in Unix seconds."""

    name: str
    kind: Literal["hub", "converted", "bucket"]
    path: Path
    nbytes: int
    changed: float

    def files(self) -> Iterator[tuple[str, int]]:
        """Its files with their sizes in bytes; of a hub's model, the files of all its revisions."""
        root = self.path / "snapshots" if self.kind == "hub" else self.path
        for file in sorted(root.rglob("*")):
            if file.is_file():
                yield str(file.relative_to(root)), file.stat().st_size


def cached_models() -> list[CachedModel]:
    """The models on this machine's disk, by name."""
    ours = Path(cache_dir())
    folders: list[tuple[Literal["hub", "converted", "bucket"], Path, str]] = [
        ("hub", hub_cache(), f"{_HUB_FOLDER}*"),
        ("converted", ours / "converted", "*"),
        ("bucket", ours / "models", "*"),
    ]
    found = []
    for kind, folder, pattern in folders:
        for path in folder.glob(pattern):
            if path.is_dir() and ".partial-" not in path.name:
                name = path.name
                if kind == "hub":
                    name = name.removeprefix(_HUB_FOLDER).replace("--", "/")
                found.append(CachedModel(name, kind, path, _nbytes(path), path.stat().st_mtime))
    return sorted(found, key=lambda model: (model.name, model.kind))


def cached_model(name: str) -> CachedModel:
    """The model of this name. Raises `ModelNotFoundError`, which names the nearest."""
    models = cached_models()
    for model in models:
        if model.name == name:
            return model
    hint = nearest(name, [model.name for model in models])
    raise ModelNotFoundError(f"no model '{name}' is on this machine's disk. {hint}".rstrip())


def remove_model(model: CachedModel) -> None:
    """Remove its files. Raises `EngineStartError` where that is not allowed."""
    try:
        shutil.rmtree(model.path)
        for suffix in (".lock", ".log"):
            model.path.with_name(model.path.name + suffix).unlink(missing_ok=True)
        shutil.rmtree(hub_cache() / ".locks" / model.path.name, ignore_errors=True)
    except OSError as error:
        raise EngineStartError(f"'{model.path}' could not be removed: {error}") from None


def hub_cache() -> Path:
    """The folder in which Hugging Face's libraries keep what they fetch."""
    home = os.environ.get("HF_HOME") or "~/.cache/huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()


def hub_folder(name: str) -> Path:
    """The folder for the files of a hub's model "org/name", whether or not they were fetched."""
    return hub_cache() / f"{_HUB_FOLDER}{name.replace('/', '--')}"


def pull(
    name: str, include: Sequence[str] = (), say: Callable[[str], None] = lambda line: None
) -> CachedModel:
    """Fetch a model, "org/name" or "org/name@revision", from the hub into Hugging Face's cache,
    where each engine looks.

    A complete file is not fetched again, a partial one is continued, and each is compared with the
    hub's checksum. `include` are patterns of files; without, the configuration, the
    tokenizer and one form of weights. The hub is Hugging Face's, or that of `HF_ENDPOINT`.

    Raises `EngineStartError` if the hub cannot be reached or lacks the model, or a checksum
    differs; `ConfigError` where nobody can tell which files are meant; `MissingExtraError`.
    """
    hub = require("huggingface_hub", "hf", needed_by="Fetching a model from a hub")
    repository, _, revision = name.partition("@")
    try:
        info = hub.HfApi().model_info(
            repository, revision=revision or None, timeout=_HUB_SECONDS, files_metadata=True
        )
    except Exception as error:  # of the hub's client, its HTTP library, or the network
        raise EngineStartError(_unreachable(name, error)) from None
    files = {file.rfilename: file for file in info.siblings or ()}
    chosen = chosen_files(name, list(files), include)
    sizes = [files[file].size or 0 for file in chosen]
    say(f"{len(chosen)} files, {sum(sizes) / 1e6:,.1f} MB")
    try:
        folder = Path(hub.snapshot_download(repository, revision=info.sha, allow_patterns=chosen))
    except Exception as error:
        raise EngineStartError(
            f"'{name}' could not be fetched: {_first_line(error)}. The same command continues"
        ) from None
    for file in chosen:
        if not _is_sound(folder / file, files[file]):
            (folder / file).resolve().unlink(missing_ok=True)
            (folder / file).unlink(missing_ok=True)
            raise EngineStartError(
                f"'{file}' of '{name}' differs from the hub's checksum and was removed: the same"
                " command fetches it again"
            )
    return cached_model(repository)


def chosen_files(name: str, files: Sequence[str], include: Sequence[str]) -> list[str]:
    """Which files of a repository to fetch. Raises `ConfigError`."""

    def matching(patterns: Sequence[str]) -> list[str]:
        return [file for file in files if any(_matches(file, one) for one in patterns)]

    if include:
        if found := matching(include):
            return found
        raise ConfigError(
            f"'{name}' has no such file; it has {', '.join(sorted(files)[:20])}",
            field="include",
            value=" ".join(include),
        )
    for form in _WEIGHTS:
        if weights := matching(form):
            return [*matching(_BESIDE), *weights]
    gguf = [file for file in files if file.endswith(".gguf")]
    if len(gguf) == 1:
        return gguf
    if gguf:
        raise ConfigError(
            f"'{name}' has several: {', '.join(gguf[:20])}; name one", field="include"
        )
    raise ConfigError(f"'{name}' has no weights of a known form; name files", field="include")


def _matches(file: str, pattern: str) -> bool:
    """Whether a file matches; `*` does not reach into folders."""
    return file.count("/") == pattern.count("/") and fnmatch(file, pattern)


def _is_sound(path: Path, file: Any) -> bool:
    """Whether a file has the checksum that the hub states: SHA-256 of large files (Git LFS), Git's
    own of others.
    """
    stated: str | None = getattr(file.lfs, "sha256", None) if file.lfs else file.blob_id
    if stated is None:
        return file.size in (None, path.stat().st_size)
    digest: Any = hashlib.sha256() if file.lfs else hashlib.sha1(usedforsecurity=False)
    if not file.lfs:
        digest.update(b"blob %d\0" % path.stat().st_size)
    with path.open("rb") as opened:
        while piece := opened.read(_AT_ONCE):
            digest.update(piece)
    found: str = digest.hexdigest()
    return found == stated


def _unreachable(name: str, error: Exception) -> str:
    where = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    kind = type(error).__name__
    if "NotFound" in kind or "Gated" in kind or "Validation" in kind:
        return f"the hub does not give '{name}': {_first_line(error)}"
    return f"the hub at {where} cannot be reached (offline?): {_first_line(error)}"


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__


def _nbytes(path: Path) -> int:
    """What the files in a folder take; those that several links share count once."""
    return sum(
        file.stat().st_size for file in path.rglob("*") if file.is_file() and not file.is_symlink()
    )
