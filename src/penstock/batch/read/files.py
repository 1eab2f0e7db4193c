"""A file, local or at a URL: the form that its name tells, its content, and its errors."""

from __future__ import annotations

import contextlib
import lzma
import os
import stat
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal, cast

from penstock.batch.read.compressed import COMPRESSED, decompressed
from penstock.errors import InputError, MissingExtraError, PenstockError, class_and_text, printable

Form = Literal["jsonl", "csv", "parquet", "audio"]
FORMS: dict[str, Form] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".parquet": "parquet",
}
_READ: dict[str, Form] = {**FORMS, ".tsv": "csv", ".tab": "csv"}
RECORDINGS = (
    *(".wav", ".mp3", ".flac", ".ogg", ".opus", ".oga", ".m4a", ".mp4"),
    *(".webm", ".aac", ".aiff", ".aif"),
)
KNOWN = (
    f"{', '.join(_READ)}; the text forms also compressed ({', '.join(COMPRESSED)});"
    f" recordings ({', '.join(RECORDINGS)})"
)
"""The extensions that can be read, for messages."""
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
_DAMAGE = zlib.error | lzma.LZMAError
_MARKS = (
    *("ETag", "etag", "LastModified", "last_modified", "mtime", "updated", "created", "blob_id"),
    *("Content-MD5", "Digest", "Last-Modified"),
)


def is_url(path: str) -> bool:
    """Whether `path` is for fsspec rather than for the local file system."""
    return "://" in path


def form_of(path: str) -> Form | None:
    """The form that a file's name tells, or None. Compressed Parquet has no form."""
    stem, extension = os.path.splitext(file_name(path).lower())
    if extension in RECORDINGS:
        return "audio"
    if extension not in COMPRESSED:
        return _READ.get(extension)
    inner = _READ.get(os.path.splitext(stem)[1])
    return inner if inner != "parquet" else None


def file_name(path: str) -> str:
    """The part of a path or URL that names the file: without the query of HTTP."""
    is_http = path.rpartition("::")[2].startswith(("http://", "https://"))
    return path.partition("?")[0] if is_http else path


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
            raise InputError(
                f"{scheme}:// needs a package that is not installed: {error}"
            ) from error
        raise MissingExtraError(module, extra, f"Reading and writing {scheme}://") from error
    except Exception as error:  # each file system raises its own errors
        raise InputError(f"{url}: {class_and_text(error)}") from error


@contextlib.contextmanager
def reading(path: str) -> Iterator[None]:
    """Turn any error of reading a file into an `InputError` that names the file."""
    try:
        yield
    except PenstockError:
        raise
    except Exception as error:
        raise InputError(f"{path}: {_reason(error, path)}") from error


def _reason(error: Exception, path: str) -> str:
    if isinstance(error, OSError) and error.errno is not None:
        return error.strerror or class_and_text(error)
    if file_name(path).lower().endswith(COMPRESSED) and isinstance(
        error, OSError | EOFError | ValueError | _DAMAGE
    ):
        return "the compressed data are damaged or cut off, or were never compressed"
    return class_and_text(error)


@dataclass(frozen=True)
class DataFile:
    """A file, local or at a URL. `state`: the size and mtime of a local file when it was found."""

    path: str
    state: tuple[int, int] | None = None

    @staticmethod
    def local(path: str) -> DataFile:
        """A local file, as it is now."""
        return DataFile(path, _state(path))

    @property
    def form(self) -> Form:
        form = form_of(self.path)
        if form is None:
            way = (
                "JSON lines are called *.jsonl, and jq -c '.[]' makes them of an array"
                if file_name(self.path).lower().endswith(".json")
                else "in Python, penstock.run takes a table or frame that another library read"
            )
            raise InputError(f"{self.path}: unknown extension; known are {KNOWN}. {way}")
        return form

    def ends_line(self, size: int) -> bool:
        """Whether the first `size` bytes are whole lines of plain text."""
        if is_url(self.path) or self.form not in ("jsonl", "csv") or size <= 0:
            return False
        if self.path.lower().endswith(COMPRESSED):
            return False
        with reading(self.path), self.open_stored() as content:
            content.seek(size - 1)
            return content.read(1) == b"\n"

    def open(self) -> BinaryIO:
        """Open for reading, decompressed. Raises `InputError`."""
        with reading(self.path):
            return decompressed(self.open_stored(), file_name(self.path))

    def open_stored(self) -> BinaryIO:
        """Open for reading, as stored. Raises `InputError`."""
        with reading(self.path):
            if is_url(self.path):
                fs, path = filesystem(self.path)
                return cast(BinaryIO, fs.open(path, "rb"))
            return open(self.path, "rb", buffering=1 << 18, opener=_open_regular)

    def check_unchanged(self) -> None:
        """Raise `InputError` if the file changed since it was found: its rows would be a mix."""
        if self.state is not None and self.state != _state(self.path):
            raise InputError(
                f"{self.path}: was changed while it was read; --fresh begins again with what it"
                " holds now"
            )

    def size(self) -> int | None:
        """The file's size in bytes, as stored; None if a server does not tell it."""
        with reading(self.path):
            if is_url(self.path):
                fs, path = filesystem(self.path)
                size = fs.size(path)
                return None if size is None else int(size)
            return os.path.getsize(self.path)

    def changed(self) -> str:
        """A text that changes with each write: the mtime, or what a URL's server has for it."""
        with reading(self.path):
            if is_url(self.path):
                fs, path = filesystem(self.path)
                info = fs.info(path)
                return " ".join(str(info[mark]) for mark in _MARKS if mark in info)
            return str(os.stat(self.path).st_mtime_ns)

    def sample(self, size: int) -> bytes:
        """The first and last 64 KiB of the file, as stored."""
        with reading(self.path):
            if is_url(self.path):
                fs, path = filesystem(self.path)
                head: bytes = fs.cat_file(path, start=0, end=min(size, _SAMPLED_BYTES))
                tail: bytes = fs.cat_file(path, start=max(0, size - _SAMPLED_BYTES), end=size)
                return head + tail
            with self.open_stored() as file:
                head = file.read(_SAMPLED_BYTES)
                file.seek(max(0, size - _SAMPLED_BYTES))
                return head + file.read(_SAMPLED_BYTES)


@contextlib.contextmanager
def for_arrow(path: str | os.PathLike[str]) -> Iterator[str | BinaryIO]:
    """A local file as Arrow can open it: its name, or the open file if that is not Unicode."""
    name = os.fspath(path)
    if printable(name) == name:
        yield name
    else:
        with open(name, "rb") as file:
            yield file


def _open_regular(path: str, flags: int) -> int:
    """An opener for `open` that takes regular files only: a pipe would block, or be read twice."""
    _check_regular(path, os.stat(path))
    descriptor = os.open(path, flags | os.O_NONBLOCK)  # as it may have become a pipe since
    try:
        _check_regular(path, os.fstat(descriptor))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _check_regular(path: str, found: os.stat_result) -> None:
    if stat.S_ISREG(found.st_mode):
        return
    if stat.S_ISFIFO(found.st_mode):
        raise InputError(
            f"{path}: is a pipe, which can be read once only; give '-' as the input and the pipe as"
            " standard input, as JSON lines"
        )
    kind = (
        "directory"
        if stat.S_ISDIR(found.st_mode)
        else "socket"
        if stat.S_ISSOCK(found.st_mode)
        else "device"
    )
    raise InputError(f"{path}: is a {kind}, no file")


def _state(path: str) -> tuple[int, int]:
    with reading(path):
        found = os.stat(path)
        _check_regular(path, found)
        return found.st_size, found.st_mtime_ns
