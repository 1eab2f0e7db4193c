"""Finds the files of a data set: one file, a directory, a glob, or a URL of any of them."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, BinaryIO, cast

from penstock.errors import InputError, MissingExtraError

FORMS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".parquet": "parquet"}
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
_FILESYSTEMS = {
    "s3": ("s3fs", "s3"),
    "s3a": ("s3fs", "s3"),
    "gs": ("gcsfs", "gcs"),
    "gcs": ("gcsfs", "gcs"),
    "abfs": ("adlfs", "abfs"),
    "abfss": ("adlfs", "abfs"),
    "az": ("adlfs", "abfs"),
    "hf": ("huggingface_hub", "hf"),
}
_SAMPLED_BYTES = 64 * 1024
_SAMPLED_FILES = 64


def is_url(path: str) -> bool:
    """Whether `path` is for fsspec rather than for the local file system."""
    return "://" in path


def form_of(path: str) -> str | None:
    """The form that a file's name tells, or None. Compressed text forms count, compressed Parquet does not."""
    stem, extension = os.path.splitext(path.lower())
    if extension not in COMPRESSED:
        return FORMS.get(extension)
    inner = FORMS.get(os.path.splitext(stem)[1])
    return inner if inner != "parquet" else None


def known_extensions() -> str:
    """The extensions that can be read, for messages."""
    return f"{', '.join(FORMS)}; the text forms also compressed ({', '.join(COMPRESSED)})"


def filesystem(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL and the path on it."""
    import fsspec

    scheme = url.partition("://")[0].rpartition("::")[2]
    try:
        found: tuple[Any, str] = fsspec.core.url_to_fs(url)
        return found
    except ImportError as error:
        module, extra = _FILESYSTEMS.get(scheme, (None, None))
        if module is None:
            raise InputError(f"{scheme}:// needs a package that is not installed: {error}") from error
        raise MissingExtraError(module, extra, f"Reading and writing {scheme}://") from error
    except ValueError as error:
        raise InputError(f"{url}: {error}") from error


@dataclass(frozen=True)
class DataFile:
    """One file of a data set. `path` is local, or a URL."""

    path: str

    @property
    def form(self) -> str:
        form = form_of(self.path)
        if form is None:
            raise InputError(f"{self.path}: unknown extension; known are {known_extensions()}")
        return form

    def open(self) -> BinaryIO:
        """Open for reading, decompressed. Raises `InputError`."""
        try:
            if is_url(self.path) or self.path.lower().endswith(COMPRESSED):
                import fsspec

                if is_url(self.path):
                    filesystem(self.path)  # for its error messages
                return cast(BinaryIO, fsspec.open(self.path, "rb", compression="infer").open())
            return open(self.path, "rb", buffering=1 << 18)
        except OSError as error:
            raise InputError(f"{self.path}: {error.strerror or error}") from error

    def sample(self, with_content: bool) -> tuple[int, bytes]:
        """The file's size in bytes and, if asked, its first and last 64 KiB as stored."""
        try:
            if is_url(self.path):
                fs, path = filesystem(self.path)
                size = int(fs.size(path) or 0)
                if not with_content:
                    return size, b""
                head = fs.cat_file(path, start=0, end=min(size, _SAMPLED_BYTES))
                return size, head + fs.cat_file(path, start=max(0, size - _SAMPLED_BYTES), end=size)
            size = os.path.getsize(self.path)
            if not with_content:
                return size, b""
            with open(self.path, "rb") as file:
                head = file.read(_SAMPLED_BYTES)
                file.seek(max(0, size - _SAMPLED_BYTES))
                return size, head + file.read(_SAMPLED_BYTES)
        except OSError as error:
            raise InputError(f"{self.path}: {error.strerror or error}") from error


def find(pattern: str) -> list[DataFile]:
    """The files that `pattern` names, sorted. Raises `InputError` if there are none, or several forms of them."""
    files = [DataFile(path) for path in (_find_remote(pattern) if is_url(pattern) else _find_local(pattern))]
    forms = sorted({file.form for file in files})
    if len(forms) > 1:
        raise InputError(f"{pattern}: files of several forms ({', '.join(forms)}); name one form, such as *.{forms[0]}")
    return files


def fingerprint(pattern: str, files: list[DataFile]) -> dict[str, Any]:
    """What tells this data set from another: names, sizes, and the head and tail of its (first 64) files."""
    digest = blake2b(digest_size=16)
    total = 0
    for number, file in enumerate(files):
        size, content = file.sample(with_content=number < _SAMPLED_FILES)
        total += size
        digest.update(f"{os.path.basename(file.path)}\0{size}\0".encode())
        digest.update(content)
    return {
        "input": os.path.basename(pattern.rstrip("/")) or pattern,
        "input files": len(files),
        "input bytes": total,
        "input digest": digest.hexdigest(),
    }


def contains(files: list[DataFile], path: str) -> bool:
    """Whether `path` is one of the files."""
    place = path if is_url(path) else os.path.abspath(path)
    return any(place == (file.path if is_url(file.path) else os.path.abspath(file.path)) for file in files)


def _find_local(pattern: str) -> list[str]:
    if os.path.isdir(pattern):
        return _data_files(pattern, _walk(pattern))
    if os.path.exists(pattern):
        return [pattern]
    if glob.has_magic(pattern):
        found = sorted(path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path))
        if found:
            return found
        raise InputError(f"{pattern}: no file matches")
    raise InputError(f"{pattern}: no such file or directory")


def _walk(directory: str) -> Iterator[str]:
    for folder, folders, names in os.walk(directory):
        # Left out: hidden folders, and the state that jobs keep beside their outputs.
        folders[:] = sorted(n for n in folders if not n.startswith((".", "_")) and not n.endswith(".penstock"))
        for name in sorted(names):
            yield os.path.join(folder, name)


def _find_remote(url: str) -> list[str]:
    fs, path = filesystem(url)
    try:
        if glob.has_magic(path):
            found = sorted(fs.glob(path))
            if not found:
                raise InputError(f"{url}: no file matches")
            return [fs.unstrip_protocol(name) for name in found]
        if fs.isdir(path):
            return _data_files(url, (fs.unstrip_protocol(name) for name in sorted(fs.find(path))))
        if not fs.exists(path):
            raise InputError(f"{url}: no such file or directory")
    except OSError as error:
        raise InputError(f"{url}: {error}") from error
    return [url]


def _data_files(directory: str, paths: Iterable[str]) -> list[str]:
    found = [p for p in paths if form_of(p) and not os.path.basename(p).startswith((".", "_"))]
    if not found:
        raise InputError(f"{directory}: no data files in this directory; known extensions are {known_extensions()}")
    return found
