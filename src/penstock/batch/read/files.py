"""The files of a data set (a file, directory, glob or URL of any of them), and their content."""

from __future__ import annotations

import bz2
import contextlib
import glob
import gzip
import io
import lzma
import os
import stat
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import PurePath
from typing import Any, BinaryIO, Literal, cast

from penstock.batch.read.sources import Rows, Source
from penstock.batch.rows.row import Row
from penstock.errors import InputError, MissingExtraError, PenstockError, class_and_text, printable

Form = Literal["jsonl", "csv", "parquet", "audio"]
FORMS: dict[str, Form] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".parquet": "parquet",
}
RECORDINGS = (
    *(".wav", ".mp3", ".flac", ".ogg", ".opus", ".oga", ".m4a", ".mp4"),
    *(".webm", ".aac", ".aiff", ".aif"),
)
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
MAGIC = {b"\x1f\x8b": ".gz", b"BZh": ".bz2", b"\xfd7zXZ\x00": ".xz", b"\x28\xb5\x2f\xfd": ".zst"}
"""What a compressed file begins with, whatever its name."""
KNOWN = (
    f"{', '.join(FORMS)}; the text forms also compressed ({', '.join(COMPRESSED)}); recordings"
    f" ({', '.join(RECORDINGS)})"
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
STATE_END = ".penstock"
"""What the names of the folders end in that jobs keep beside their outputs."""
_BLOCK = 1 << 16
_SAMPLED_BYTES = 64 * 1024
_SAMPLED_FILES = 64
_HASHED_BYTES = 1 << 30
_Decompressor = bz2.BZ2Decompressor | lzma.LZMADecompressor
_DAMAGE = zlib.error | lzma.LZMAError
_MARKS = ("ETag", "etag", "LastModified", "last_modified", "mtime", "updated", "created", "blob_id")


def is_url(path: str) -> bool:
    """Whether `path` is for fsspec rather than for the local file system."""
    return "://" in path


def form_of(path: str) -> Form | None:
    """The form that a name tells, or None. Compressed text has one, compressed Parquet has none."""
    stem, extension = os.path.splitext(path.lower())
    if extension in RECORDINGS:
        return "audio"
    if extension not in COMPRESSED:
        return FORMS.get(extension)
    inner = FORMS.get(os.path.splitext(stem)[1])
    return inner if inner != "parquet" else None


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
    except Exception as error:  # each file system has errors of its own
        raise InputError(f"{url}: {class_and_text(error)}") from error


@contextlib.contextmanager
def reading(path: str) -> Iterator[None]:
    """Turn whatever the reading of a file raises into an `InputError` that names it."""
    try:
        yield
    except PenstockError:
        raise
    except Exception as error:
        raise InputError(f"{path}: {_reason(error, path)}") from error


def _reason(error: Exception, path: str) -> str:
    if isinstance(error, OSError) and error.errno is not None:
        return error.strerror or class_and_text(error)
    if path.lower().endswith(COMPRESSED) and isinstance(
        error, OSError | EOFError | ValueError | _DAMAGE
    ):
        return "the compressed data are damaged or cut off"
    return class_and_text(error)


@dataclass(frozen=True)
class DataFile:
    """A file, local or at a URL. `state` is a local one's size and mtime when it was found."""

    path: str
    state: tuple[int, int] | None = None

    @property
    def form(self) -> Form:
        form = form_of(self.path)
        if form is None:
            raise InputError(f"{self.path}: unknown extension; known are {KNOWN}")
        return form

    def open(self) -> BinaryIO:
        """Open for reading, decompressed. Raises `InputError`."""
        with reading(self.path):
            return decompressed(self.open_stored(), self.path)

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

    def size(self) -> int:
        """The file's size in bytes, as stored."""
        with reading(self.path):
            if is_url(self.path):
                fs, path = filesystem(self.path)
                return int(fs.size(path) or 0)
            return os.path.getsize(self.path)

    def changed(self) -> str:
        """What changes with each write: the mtime, or what a URL's file system has for it."""
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
    """What Arrow opens a local file by: its name, or an open file where that is no Unicode."""
    name = os.fspath(path)
    if printable(name) == name:
        yield name
    else:
        with open(name, "rb") as file:
            yield file


def _open_regular(path: str, flags: int) -> int:
    """An opener for `open` that takes files only: a pipe would block, or be read twice."""
    _check_regular(path, os.stat(path))
    descriptor = os.open(path, flags | os.O_NONBLOCK)  # it can have become a pipe since
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


def find(pattern: str) -> list[DataFile]:
    """The files of `pattern`, sorted. Raises `InputError` for none, or for several forms."""
    if "\0" in pattern:
        raise InputError(f"{pattern!r}: a path holds no zero byte")
    if is_url(pattern):
        files = [DataFile(path) for path in _find_remote(pattern)]
    else:
        files = [DataFile(path, _state(path)) for path in _find_local(pattern)]
    if any(file.form != "audio" for file in files):  # recordings that lie beside data
        files = [file for file in files if file.form != "audio"]
    forms = sorted({file.form for file in files})
    if len(forms) > 1:
        raise InputError(
            f"{pattern}: files of several forms ({', '.join(forms)}); name one form, such as"
            f" *.{forms[0]}"
        )
    return files


def fingerprint(pattern: str, files: list[DataFile]) -> dict[str, Any]:
    """What tells this data set from another: the names, sizes and content of its files.

    Of URLs, and of more than 1 GiB in all, not the content counts but the time of change, and the
    head and tail of the first 64 files.
    """
    digest = blake2b(digest_size=16)
    sizes = [file.size() for file in files]
    total = sum(sizes)
    for number, (file, size) in enumerate(zip(files, sizes, strict=True)):
        digest.update(f"{os.path.basename(file.path)}\0{size}\0".encode(errors="surrogateescape"))
        if total <= _HASHED_BYTES and not is_url(file.path):
            with reading(file.path), file.open_stored() as content:
                while block := content.read(1 << 20):
                    digest.update(block)
            continue
        digest.update(f"{file.changed()}\0".encode())
        if number < _SAMPLED_FILES:
            digest.update(file.sample(size))
    return {
        "input": printable(os.path.basename(pattern.rstrip("/")) or pattern),
        "input files": len(files),
        "input bytes": total,
        "input digest": digest.hexdigest(),
    }


class FileSource(Source):
    """Rows from the files that `find` found for `name`."""

    def __init__(self, name: str, files: list[DataFile]) -> None:
        self.name = name
        self._files = files
        self.fingerprint = fingerprint(name, files)

    def reads(self, path: str) -> bool:
        """Whether writing to `path` touches the files, or gives `find` more to find."""
        place = _place(path)
        found = [_place(file.path) for file in self._files]
        if any(file == place or file.startswith(place.rstrip("/") + "/") for file in found):
            return True
        if is_url(path) or is_url(self.name):
            return False
        if os.path.isdir(self.name):
            below = os.path.relpath(place, _place(self.name)).split(os.sep)
            return below[0] != os.pardir and not any(part.startswith((".", "_")) for part in below)
        return (
            glob.has_magic(self.name)
            and not os.path.exists(self.name)
            and PurePath(place).match(_place(self.name))
        )


class Recordings(FileSource):
    """Audio files: a row for each, with its path in the column `path`."""

    columns = ("path",)
    json_values = True

    def __init__(self, name: str, files: list[DataFile]) -> None:
        super().__init__(name, files)
        self.rows = len(files)
        self.first = {"path": files[0].path}

    def batches(self, start: int = 0, columns: Sequence[str] | None = None) -> Iterator[list[Row]]:
        return Rows([{"path": file.path} for file in self._files]).batches(start)


def _place(path: str) -> str:
    return path if is_url(path) else os.path.realpath(path)


def _find_local(pattern: str) -> list[str]:
    try:
        is_folder = stat.S_ISDIR(os.stat(pattern).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        if not glob.has_magic(pattern):
            raise InputError(f"{pattern}: no such file or directory") from None
    except OSError as error:
        raise InputError(f"{pattern}: {error.strerror}") from error
    else:
        return _data_files(pattern, _walk(pattern)) if is_folder else [pattern]
    found = sorted(path for path in glob.glob(pattern, recursive=True) if not os.path.isdir(path))
    if not found:
        raise InputError(f"{pattern}: no file matches")
    return found


def _walk(directory: str) -> Iterator[str]:
    """The files in a directory and below. Links are followed, each directory is read once."""
    known = {os.path.realpath(directory)}
    for folder, folders, names in os.walk(directory, onerror=_raise, followlinks=True):
        # Left out: hidden folders, and the state that jobs keep beside their outputs.
        kept = sorted(
            n for n in folders if not n.startswith((".", "_")) and not n.endswith(STATE_END)
        )
        folders.clear()
        for name in kept:
            real = os.path.realpath(os.path.join(folder, name))
            if real not in known:
                known.add(real)
                folders.append(name)
        for name in sorted(names):
            yield os.path.join(folder, name)


def _raise(error: OSError) -> None:
    raise InputError(f"{error.filename}: {error.strerror}") from error


def _find_remote(url: str) -> list[str]:
    fs, path = filesystem(url)
    with reading(url):
        if glob.has_magic(path):
            found = sorted(fs.glob(path))
            if not found:
                raise InputError(f"{url}: no file matches")
            return [fs.unstrip_protocol(name) for name in found]
        if fs.isdir(path):
            return _data_files(url, (fs.unstrip_protocol(name) for name in sorted(fs.find(path))))
        if not fs.exists(path):
            raise InputError(f"{url}: no such file or directory")
    return [url]


def _data_files(directory: str, paths: Iterable[str]) -> list[str]:
    found = [p for p in paths if form_of(p) and not os.path.basename(p).startswith((".", "_"))]
    if not found:
        raise InputError(
            f"{directory}: no data files in this directory; known extensions are {KNOWN}"
        )
    return found


def decompressed(raw: BinaryIO, path: str) -> BinaryIO:
    """The content of the open file `raw`, decompressed as its name says; closes `raw` too."""
    match os.path.splitext(path.lower())[1]:
        case ".gz":
            stream = gzip.GzipFile(fileobj=raw, mode="rb")
            stream.myfileobj = cast(io.FileIO, raw)  # which it closes with itself
            return cast(BinaryIO, io.BufferedReader(stream))
        case ".bz2":
            return cast(BinaryIO, io.BufferedReader(_Members(raw, bz2.BZ2Decompressor)))
        case ".xz":
            return cast(BinaryIO, io.BufferedReader(_Members(raw, lzma.LZMADecompressor)))
        case ".zst":
            import pyarrow as pa  # which is there anyway, and reads several frames as one

            return cast(BinaryIO, pa.CompressedInputStream(raw, "zstd"))
        case _:
            return raw


class _Members(io.RawIOBase):
    """The members of a compressed file, one after the other.

    `bz2` and `lzma` have such readers too. But theirs end without an error at a member whose
    beginning is damaged, and its rows and all later ones would be missing.
    """

    def __init__(self, raw: BinaryIO, make: Callable[[], _Decompressor]) -> None:
        self._raw = raw
        self._make = make
        self._member = make()
        self._begun = False  # the member has had data

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while True:
            data = b""
            if self._member.eof:
                data = self._member.unused_data
                self._member = self._make()
                self._begun = False
            if not data and self._member.needs_input:
                data = self._raw.read(_BLOCK)
                if not data:
                    if self._begun:
                        raise EOFError("the file ends in the middle of its compressed data")
                    return 0
            if not self._begun:
                data = data.lstrip(b"\0")  # padding between members, and at the end
                if not data:
                    continue
                self._begun = True
            found = self._member.decompress(data, len(buffer))
            if found:
                buffer[: len(found)] = found
                return len(found)

    def close(self) -> None:
        super().close()
        self._raw.close()
