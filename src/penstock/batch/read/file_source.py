"""The files of a data set (a file, directory, glob or URL of any of them): which they are, whether
they have changed, and whether an output would be one of them.
"""

from __future__ import annotations

import glob
import os
import re
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from hashlib import blake2b
from typing import Any

from penstock.batch.read.files import (
    KNOWN,
    DataFile,
    file_name,
    filesystem,
    form_of,
    is_url,
    reading,
)
from penstock.batch.read.folders import DELTA_LOG, globbed, is_apart, is_shown, walk
from penstock.batch.read.sources import Rows, Source
from penstock.batch.rows.row import Row
from penstock.errors import InputError, printable

_SAMPLED_FILES = 64
_HASHED_BYTES = 1 << 30
_TABLE = re.compile(
    rf"(.*)/({DELTA_LOG}(/[^/]*\.json)?|metadata/v?[0-9][^/]*\.metadata\.json)", re.DOTALL
)
"""A path that only tables of Delta Lake and Iceberg have, below the directory of the table."""


def find(pattern: str) -> list[DataFile]:
    """The files of `pattern`, sorted. Raises `InputError` for none, or for several forms."""
    if "\0" in pattern:
        raise InputError(f"{pattern!r}: a path holds no zero byte")
    if is_url(pattern):
        files = [DataFile(path) for path in _find_remote(pattern)]
    else:
        files = [DataFile.local(path) for path in _find_local(pattern)]
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
        "input": printable(os.path.basename(file_name(pattern).rstrip("/")) or pattern),
        "input files": len(files),
        "input bytes": sum(size or 0 for size in sizes),
        "input digest": digest,
    }


def _digest(files: Sequence[DataFile], sizes: Sequence[int | None]) -> str | None:
    """The digest of a fingerprint. `sizes` is how many first bytes of each file it covers."""
    digest = blake2b(digest_size=16)
    total = sum(size or 0 for size in sizes)
    for number, (file, size) in enumerate(zip(files, sizes, strict=True)):
        name = os.path.basename(file_name(file.path))
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
    if not glob.has_magic(file_name(pattern)):
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
