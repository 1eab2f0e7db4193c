"""Finds the files of a data set: one file, a directory, a glob, or a URL of any of them."""

from __future__ import annotations

import contextlib
import glob
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import PurePath
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
_HASHED_BYTES = 1 << 30
_MARKS = ("ETag", "etag", "LastModified", "last_modified", "mtime", "updated", "created", "blob_id")


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

    def size(self) -> int:
        """The file's size in bytes, as stored."""
        with self._readable():
            if is_url(self.path):
                fs, path = filesystem(self.path)
                return int(fs.size(path) or 0)
            return os.path.getsize(self.path)

    def changed(self) -> str:
        """What changes when the file is written again: its time of change, or what the URL's file system has for it."""
        with self._readable():
            if is_url(self.path):
                fs, path = filesystem(self.path)
                info = fs.info(path)
                return " ".join(str(info[mark]) for mark in _MARKS if mark in info)
            return str(os.stat(self.path).st_mtime_ns)

    def sample(self, size: int) -> bytes:
        """The first and last 64 KiB of the file, as stored."""
        with self._readable():
            if is_url(self.path):
                fs, path = filesystem(self.path)
                head: bytes = fs.cat_file(path, start=0, end=min(size, _SAMPLED_BYTES))
                tail: bytes = fs.cat_file(path, start=max(0, size - _SAMPLED_BYTES), end=size)
                return head + tail
            with open(self.path, "rb") as file:
                head = file.read(_SAMPLED_BYTES)
                file.seek(max(0, size - _SAMPLED_BYTES))
                return head + file.read(_SAMPLED_BYTES)

    def hash_into(self, digest: blake2b) -> None:
        """Add the whole of a local file to a digest."""
        with self._readable(), open(self.path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)

    @contextlib.contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
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
    """What tells this data set from another: the names, sizes and content of its files.

    Of URLs, and of more than 1 GiB in all, not the content counts but the time of change, and the head and tail of
    the first 64 files.
    """
    digest = blake2b(digest_size=16)
    sizes = [file.size() for file in files]
    total = sum(sizes)
    for number, (file, size) in enumerate(zip(files, sizes, strict=True)):
        digest.update(f"{os.path.basename(file.path)}\0{size}\0".encode())
        if total <= _HASHED_BYTES and not is_url(file.path):
            file.hash_into(digest)
            continue
        digest.update(f"{file.changed()}\0".encode())
        if number < _SAMPLED_FILES:
            digest.update(file.sample(size))
    return {
        "input": os.path.basename(pattern.rstrip("/")) or pattern,
        "input files": len(files),
        "input bytes": total,
        "input digest": digest.hexdigest(),
    }


def contains(files: list[DataFile], path: str, pattern: str) -> bool:
    """Whether writing to `path` touches the files that `pattern` found, or gives it more to find."""
    place = _place(path)
    found = [_place(file.path) for file in files]
    if any(file == place or file.startswith(place.rstrip("/") + "/") for file in found):
        return True
    if is_url(path) or is_url(pattern):
        return False
    if os.path.isdir(pattern):
        below = os.path.relpath(place, _place(pattern)).split(os.sep)
        return below[0] != os.pardir and not any(part.startswith((".", "_")) for part in below)
    return glob.has_magic(pattern) and not os.path.exists(pattern) and PurePath(place).match(_place(pattern))


def _place(path: str) -> str:
    return path if is_url(path) else os.path.realpath(path)


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
