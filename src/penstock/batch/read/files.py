"""The files of a data set (a file, directory, glob or URL of any of them), and their content."""

from __future__ import annotations

import contextlib
import glob
import lzma
import os
import re
import stat
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from hashlib import blake2b
from typing import Any, BinaryIO, Literal, cast

from penstock.batch.read.compressed import COMPRESSED, decompressed
from penstock.batch.read.folders import DELTA_LOG, globbed, is_apart, is_shown, walk
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
_SAMPLED_FILES = 64
_HASHED_BYTES = 1 << 30
_DAMAGE = zlib.error | lzma.LZMAError
_MARKS = (
    *("ETag", "etag", "LastModified", "last_modified", "mtime", "updated", "created", "blob_id"),
    *("Content-MD5", "Digest", "Last-Modified"),
)
_TABLE = re.compile(
    rf"(.*)/({DELTA_LOG}(/[^/]*\.json)?|metadata/v?[0-9][^/]*\.metadata\.json)", re.DOTALL
)
"""A path that only tables of Delta Lake and Iceberg have, below the directory of the table."""


def is_url(path: str) -> bool:
    """Whether `path` is for fsspec rather than for the local file system."""
    return "://" in path


def form_of(path: str) -> Form | None:
    """The form that a file's name tells, or None. Compressed Parquet has no form."""
    stem, extension = os.path.splitext(_name(path).lower())
    if extension in RECORDINGS:
        return "audio"
    if extension not in COMPRESSED:
        return _READ.get(extension)
    inner = _READ.get(os.path.splitext(stem)[1])
    return inner if inner != "parquet" else None


def _name(path: str) -> str:
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
    if _name(path).lower().endswith(COMPRESSED) and isinstance(
        error, OSError | EOFError | ValueError | _DAMAGE
    ):
        return "the compressed data are damaged or cut off, or were never compressed"
    return class_and_text(error)


@dataclass(frozen=True)
class DataFile:
    """A file, local or at a URL. `state`: the size and mtime of a local file when it was found."""

    path: str
    state: tuple[int, int] | None = None

    @property
    def form(self) -> Form:
        form = form_of(self.path)
        if form is None:
            way = (
                "JSON lines are called *.jsonl, and jq -c '.[]' makes them of an array"
                if _name(self.path).lower().endswith(".json")
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
            return decompressed(self.open_stored(), _name(self.path))

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


def find(pattern: str) -> list[DataFile]:
    """The files of `pattern`, sorted. Raises `InputError` for none, or for several forms."""
    if "\0" in pattern:
        raise InputError(f"{pattern!r}: a path holds no zero byte")
    if is_url(pattern):
        files = [DataFile(path) for path in _find_remote(pattern)]
    else:
        files = [DataFile(path, _state(path)) for path in _find_local(pattern)]
    if not files:
        raise InputError(f"{pattern}: no file matches")
    if any(file.form != "audio" for file in files):  # recordings that lie beside data
        files = [file for file in files if file.form != "audio"]
    forms = sorted({file.form for file in files})
    if len(forms) > 1:
        raise InputError(
            f"{pattern}: files of several forms ({', '.join(forms)}); name one form, such as"
            f" *.{forms[0]}"
        )
    return files


def fingerprint(pattern: str, files: list[DataFile]) -> dict[str, Any] | None:
    """The fingerprint of a data set: the names, sizes and content of its files. None if a server
    tells neither size nor change.

    For URLs, and for files of more than 1 GiB in all, the content is represented by the times of
    change, and by the head and tail of the first 64 files.
    """
    sizes = [file.size() for file in files]
    digest = _digest(files, sizes)
    if digest is None:
        return None
    return {
        "input": printable(os.path.basename(_name(pattern).rstrip("/")) or pattern),
        "input files": len(files),
        "input bytes": sum(size or 0 for size in sizes),
        "input digest": digest,
    }


def _digest(files: Sequence[DataFile], sizes: Sequence[int | None]) -> str | None:
    """The digest of a fingerprint. `sizes` is how many first bytes of each file it covers."""
    digest = blake2b(digest_size=16)
    total = sum(size or 0 for size in sizes)
    for number, (file, size) in enumerate(zip(files, sizes, strict=True)):
        name = os.path.basename(_name(file.path))
        digest.update(f"{name}\0{size}\0".encode(errors="surrogateescape"))
        if total <= _HASHED_BYTES and size is not None and not is_url(file.path):
            with reading(file.path), file.open_stored() as content:
                while block := content.read(min(size, 1 << 20)):
                    digest.update(block)
                    size -= len(block)
            continue
        changed = file.changed()
        if size is None and not changed:
            return None
        digest.update(f"{changed}\0".encode())
        if size is not None and number < _SAMPLED_FILES:
            digest.update(file.sample(size))
    return digest.hexdigest()


class FileSource(Source):
    """Rows from the files that `find` found for `name`."""

    def __init__(self, name: str, files: list[DataFile]) -> None:
        self.name = name
        self._files = files
        self.fingerprint = fingerprint(name, files)

    def begins_with(self, known: Mapping[str, Any], *, sound_end: bool) -> bool:
        if known == self.fingerprint:
            return True
        files = self._files[: known.get("input files", 0)]
        sizes = [file.size() or 0 for file in files]
        more = sum(sizes) - known.get("input bytes", 0)
        if not files or self.fingerprint is None or more < 0:
            return False
        if more:  # the last of these files has grown; it must have grown by whole lines
            last = files[-1]
            sizes[-1] -= more
            if not (sound_end and last.ends_line(sizes[-1])):
                return False
        beginning = {
            "input files": len(files),
            "input bytes": sum(sizes),
            "input digest": _digest(files, sizes),
        }
        return known == {**self.fingerprint, **beginning}

    def is_touched_by_writing(self, path: str) -> bool:
        """Whether `path` is one of the files, or would be one that `find` finds."""
        place = _place(path)
        found = [_place(file.path) for file in self._files]
        if any(file == place or file.startswith(place.rstrip("/") + "/") for file in found):
            return True
        pattern = _place(self.name)
        wanted, parts = pattern.split("/"), place.split("/")
        if is_apart(place, pattern):
            return False
        if not _is_glob(self.name):
            below = parts[len(wanted) :]
            return below != [] and is_shown(below[-1]) and parts[: len(wanted)] == wanted
        if _matches(parts, wanted):
            return True
        matches_files = any(_matches(file.split("/"), wanted) for file in found)
        return is_shown(parts[-1]) and any(
            _matches(parts[:length], wanted)
            for length in range(1, len(parts))
            if form_of(parts[length - 1]) or not matches_files
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
    """The canonical name of the file that a path or URL leads to."""
    if not is_url(path):
        return os.path.realpath(path)
    from fsspec.implementations.local import LocalFileSystem

    fs, inner = filesystem(path)
    if isinstance(fs, LocalFileSystem):
        return os.path.realpath(inner)
    return str(fs.unstrip_protocol(inner)).rstrip("/")


def _is_glob(pattern: str) -> bool:
    if not glob.has_magic(_name(pattern)):
        return False
    if not is_url(pattern):
        return not os.path.exists(pattern)
    fs, path = filesystem(pattern)
    return not fs.exists(path)


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether the parts of a path match those of a glob."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_matches(parts[start:], pattern[1:]) for start in range(len(parts) + 1))
    return parts != [] and fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _find_local(pattern: str) -> list[str]:
    try:
        is_folder = stat.S_ISDIR(os.stat(pattern).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        if not glob.has_magic(pattern):
            raise InputError(f"{pattern}: no such file or directory") from None
    except OSError as error:
        raise InputError(f"{pattern}: {error.strerror}") from error
    else:
        if not is_folder:
            return [pattern]
        return _data_files(pattern, pattern, walk(pattern))
    return _matched(pattern, globbed(pattern), os.path.isdir, walk)


def _matched(
    pattern: str,
    found: Collection[str],
    is_folder: Callable[[str], bool],
    walk: Callable[[str], Iterable[str]],
) -> list[str]:
    """The files that a glob `found`, and the files in the folders that it found. If it found files
    too, only folders with names of data files count, such as Spark makes.
    """
    places = {path: f"{path}/" if is_folder(path) else path for path in found}
    shown = [path for path in found if not is_apart(places[path], pattern)]
    files = {path for path in shown if places[path] == path}
    folders = [path for path in shown if places[path] != path and (form_of(path) or not files)]
    if folders:
        _refuse_table(pattern, found)
    for folder in folders:
        files.update(_data_in(folder, walk(folder)))
    return sorted(files)


def _find_remote(url: str) -> list[str]:
    fs, path = filesystem(url)
    with reading(url):
        if _is_glob(url):
            infos = fs.glob(path, detail=True)
            found = _matched(
                path, infos, lambda found: infos[found]["type"] == "directory", fs.find
            )
            return [fs.unstrip_protocol(name) for name in found]
        # Pages with links count as directories, so each file would be read to look for links.
        if not (form_of(url) and url.startswith(("http://", "https://"))) and fs.isdir(path):
            names = sorted(fs.find(path))
            return [fs.unstrip_protocol(name) for name in _data_files(url, path, names)]
        if not fs.exists(path):
            raise InputError(f"{url}: no such file or directory")
    return [url]


def _is_data(path: str, folder: str) -> bool:
    """Whether a file in `folder`, or below, counts as data."""
    shown = is_shown(os.path.basename(path)) and not is_apart(path, folder)
    return shown and form_of(path) is not None


def _data_in(folder: str, paths: Iterable[str]) -> list[str]:
    """The data files of `paths`, all in or below `folder`. Raises `InputError` for a table."""
    paths = list(paths)
    _refuse_table(folder, paths)
    return [path for path in paths if _is_data(path, folder)]


def _refuse_table(pattern: str, paths: Iterable[str]) -> None:
    """Raise `InputError` if one of `paths` shows a table of Delta Lake or Iceberg, whose files hold
    rows of all versions.
    """
    for found in filter(None, map(_TABLE.fullmatch, paths)):
        if not is_apart(f"{found[1]}/", pattern):
            raise InputError(
                f"{found[1]}: is a table of Delta Lake or Iceberg, and which of its files count"
                " only its library knows; give what it reads, an Arrow table, or name the files"
                " (*.parquet)"
            )


def _data_files(directory: str, folder: str, paths: Iterable[str]) -> list[str]:
    found = _data_in(folder, paths)
    if not found:
        raise InputError(
            f"{directory}: no data files in this directory; known extensions are {KNOWN}"
        )
    return found
