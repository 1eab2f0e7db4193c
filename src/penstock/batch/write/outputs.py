"""Where a job's results go: a file, a directory of Parquet, or a URL.

Nothing else is overwritten.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

from penstock import env, private_files
from penstock.batch.read.files import FORMS, Form, filesystem, is_url
from penstock.batch.read.folders import STATE_END
from penstock.batch.write import text
from penstock.batch.write.manifest import Stamp
from penstock.batch.write.parts import Segment
from penstock.batch.write.places import check_place
from penstock.batch.write.state_files import checksum_of, remove, sync_folder, writing
from penstock.errors import ConfigError, OutputError, PenstockError, printable

_PART = re.compile(r"part-\d{5,}\.parquet")
"""The names of the files that a job writes into a directory."""


class Output:
    """A file, directory or URL that a job writes. `folder` is the job's state directory. Rows that
    failed go to `dead_letter`, a file of JSON lines, if it is given.

    Raises `ConfigError` for an unknown extension.
    """

    def __init__(self, path: str, dead_letter: str | None = None) -> None:
        if not path.rstrip("/"):
            raise ConfigError("must not be empty, nor the root directory", field="output")
        if dead_letter is not None and (
            is_url(dead_letter) or not dead_letter.lower().endswith((".jsonl", ".ndjson"))
        ):
            raise ConfigError(
                "must be a local path ending in .jsonl", field="dead_letter", value=dead_letter
            )
        if dead_letter is not None and os.path.realpath(dead_letter) == os.path.realpath(path):
            raise ConfigError(
                f"{dead_letter} is the output", field="dead_letter", value=dead_letter
            )
        self.path = path
        self.dead_letter = dead_letter
        self.remote = is_url(path)
        self.form: Form | Literal["dataset"]
        if path.endswith("/") or (not self.remote and os.path.isdir(path)):
            self.form = "dataset"
        else:
            extension = os.path.splitext(path.lower())[1]
            if extension not in FORMS:
                raise ConfigError(
                    f"{path}: unknown extension; known are {', '.join(FORMS)}, "
                    "'/' at the end for a directory of Parquet files, and '-' for standard output",
                    field="output",
                    value=path,
                )
            self.form = FORMS[extension]
        if self.remote:
            name = blake2b(path.encode(errors="surrogateescape"), digest_size=12).hexdigest()
            self.folder = Path(env.state_dir()) / name
        else:
            self.folder = Path(f"{path.rstrip('/')}{STATE_END}")

    @property
    def places(self) -> dict[str, Output]:
        """The output and the file of dead letters, by their names in the manifest."""
        letters = {} if self.dead_letter is None else {"dead letter": Output(self.dead_letter)}
        return {"output": self, **letters}

    @property
    def columnar(self) -> bool:
        """Whether parts are Parquet; else they are JSON lines."""
        return self.form in ("parquet", "dataset")

    def part_name(self, stem: str) -> str:
        """The file name of a part."""
        return f"{stem}.{'parquet' if self.columnar else 'jsonl'}"

    def exists(self) -> bool:
        """Whether there is a file or directory at the output's path. An empty directory is
        nothing.
        """
        with self._failing():
            if not self.remote:
                return not is_own(self.path.rstrip("/"), None)
            fs, path = filesystem(self.path)
            fs.invalidate_cache()
            return bool(fs.find(path) if self.form == "dataset" else fs.exists(path))

    def stamp(self) -> Stamp:
        """A stamp of the output's files, which changes when one is edited. At a URL it covers only
        their sizes.
        """
        with self._failing():
            if not self.remote:
                return stamp_of(self.path.rstrip("/"))
            fs, path = filesystem(self.path)
            fs.invalidate_cache()
            if self.form == "dataset":
                found = sorted(fs.glob(f"{path.rstrip('/')}/*.parquet"))
                return [
                    [printable(name.rpartition("/")[2]), int(fs.size(name) or 0), 0]
                    for name in found
                ]
            return [["", int(fs.size(path) or 0), 0]] if fs.exists(path) else []

    def is_own(self, known: Stamp | None, *, placing: bool = False) -> bool:
        """Whether the output's path has no file that `known` does not list.

        Files at a URL are taken for the job's own once it is `placing` its output there.
        """
        if known is None:
            return not self.exists()
        return (placing and self.remote) or all(entry in known for entry in self.stamp())

    def check_replaceable(self) -> None:
        """Raise `ConfigError` for a directory with Parquet files that no job wrote: a job must not
        remove them, and new files beside them would make a mix.
        """
        if self.form != "dataset":
            return
        other = next((name for name, *_ in self.stamp() if not _PART.fullmatch(name)), None)
        if other == "":
            raise ConfigError(
                f"{self.path} is to be a directory, and a file stands there; remove it, or give"
                " another directory",
                field="output",
            )
        if other is not None:
            raise ConfigError(
                f"{self.path} holds {other}, which is not the output of a job and not replaced;"
                " remove it, or give another directory",
                field="output",
            )

    def prepare(self) -> None:
        """Make the state directory. Raises `ConfigError` or `OutputError`."""
        if self.remote:
            filesystem(self.path)  # raises if the package for this URL is missing
        else:
            check_place(self.path, "output", replaced=True, directory=True)
        if self.dead_letter is not None:
            check_place(self.dead_letter, "dead_letter", replaced=True, directory=True)
        try:
            if not private_files.make_folder(self.folder):
                private_files.close_to_others(self.folder)
        except OSError as error:
            raise OutputError(f"{self.folder}: {error.strerror or error}") from error

    def assemble(
        self, rows: Callable[[], Iterable[Segment]], empty: Callable[[], Any], columns: list[str]
    ) -> Path:
        """Write the final output from the parts, in the state directory. Returns its path there.

        `empty` makes an Arrow table and `columns` name the columns for an output without rows.
        Raises `OutputError`.
        """
        target = (
            self.folder / self.part_name("final")
            if self.form != "dataset"
            else self.folder / "final"
        )
        with self._failing():
            remove(target)
            if self.form == "jsonl":
                text.write_jsonl(target, self.folder, rows())
            elif self.form == "csv":
                text.write_csv(target, self.folder, rows, columns)
            else:
                from penstock.batch.write import parquet

                write = parquet.write_dataset if self.form == "dataset" else parquet.write_parquet
                write(target, self.folder, rows, empty())
        return target

    def assemble_failed(self, rows: Iterable[Segment]) -> Path:
        """Write the failed rows in the state directory. Returns the path. Raises `OutputError`."""
        target = self.folder / "failed.jsonl"
        with self._failing():
            if self.columnar:
                from penstock.batch.write import parquet

                parquet.write_lines(target, self.folder, list(rows))
            else:
                text.write_jsonl(target, self.folder, rows)
        return target

    def stamp_of(self, made: Path) -> Stamp:
        """The `stamp` of the output when `made` is at its path."""
        stamp = stamp_of(made)
        return [[name, size, 0] for name, size, _ in stamp] if self.remote else stamp

    def place(self, made: Path, known: Stamp | None) -> None:
        """Move `made` to the output's path: atomically, or at a URL file by file. Raises
        `OutputError`.
        """
        with self._failing():
            if self.remote:
                self._upload(made)
            else:
                place(made, self.path, known)

    def take_back(self, name: str, checksum: int, rows: int) -> str:
        """Make the final output, with `rows` rows, a part of its job again, called `name`. Returns
        the part's file name.

        Raises `OutputError` if the output has another checksum.
        """
        target = self.folder / (name if self.form == "dataset" else self.part_name(name))
        source = self.path
        with self._failing():
            remove(target)
            if self.remote:
                fs, path = filesystem(self.path)
                source = str(self.folder / "download")
                remove(Path(source))
                fs.get(path, source, recursive=self.form == "dataset")
            if checksum_of(Path(source)) != checksum:
                raise OutputError(
                    f"{self.path} was changed since the job wrote it, so its rows cannot be told"
                    " apart; --fresh computes all of them again"
                )
            if self.form == "dataset":
                private_files.make_folder(target)
                for file in sorted(glob.glob(os.path.join(glob.escape(source), "*.parquet"))):
                    _link(file, target / os.path.basename(file))
            elif self.form == "csv":
                text.csv_to_jsonl(Path(source), target, rows)
            else:
                _link(source, target)
            if self.remote:
                remove(Path(source))
        return target.name

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        with writing(self.path):
            try:
                yield
            except Exception as error:
                if not self.remote or isinstance(error, PenstockError | OSError):
                    raise
                # Each file system raises its own errors.
                raise OutputError(f"{self.path}: {error}") from error

    def _upload(self, made: Path) -> None:
        fs, path = filesystem(self.path)
        if self.form == "dataset":
            fs.makedirs(path, exist_ok=True)
            names = sorted(file.name for file in made.iterdir())
            for name in names:
                fs.put_file(str(made / name), f"{path.rstrip('/')}/{name}")
            for old in fs.glob(f"{path.rstrip('/')}/part-*.parquet"):
                name = old.rpartition("/")[2]
                if name not in names and _PART.fullmatch(name):
                    fs.rm_file(old)
        else:
            fs.put_file(str(made), path)
        remove(made)


def _link(source: str, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # some file systems have no links
        with open(source, "rb") as copied, open(target, "wb", opener=private_files.opener) as copy:
            shutil.copyfileobj(copied, copy, 1 << 20)


def stamp_of(path: str | Path) -> Stamp:
    """The stamp of a local file, or of the Parquet files of a directory.

    Empty if there are no files. Raises `OSError`.
    """
    if os.path.isdir(path):
        files = sorted(glob.glob(os.path.join(glob.escape(os.fspath(path)), "*.parquet")))
        return [[printable(os.path.basename(file)), *_stat(file)] for file in files]
    return [["", *_stat(path)]] if os.path.lexists(path) else []


def is_own(path: str | Path, known: Stamp | None) -> bool:
    """Whether `path` has no file that `known` does not list.

    An empty directory counts as no file. Raises `OSError`.
    """
    if known is not None:
        return all(entry in known for entry in stamp_of(path))
    return not os.path.lexists(path) or (os.path.isdir(path) and not os.listdir(path))


def place(made: Path, target: str, known: Stamp | None) -> None:
    """Move `made` to `target`.

    Raises `OutputError` if `target` has a file that `known` does not list, and `OSError`.
    """
    target = target.rstrip("/")
    if not is_own(target, known):
        raise in_the_way(target)
    private_files.open_to_usual(made, made.parent)
    if not made.is_dir():
        _place_file(made, target, known)
        sync_folder(Path(target).absolute().parent)
        return
    if not os.path.lexists(target):
        sync_folder(made)
        try:
            # This fails if a file, or a directory with files, has appeared meanwhile.
            os.rename(made, target)
        except (FileExistsError, NotADirectoryError):
            raise in_the_way(target) from None
        except OSError as error:
            if not is_own(target, known):
                raise in_the_way(target) from None
            if error.errno != errno.EXDEV:
                raise
            os.mkdir(target)  # `made` is on another file system: file by file
        else:
            sync_folder(Path(target).absolute().parent)
            return
    names = sorted(path.name for path in made.iterdir())
    for name in names:
        _place_file(made / name, os.path.join(target, name), known, name)
    for path in Path(target).glob("part-*.parquet"):
        if path.name not in names and [path.name, *_stat(path)] in (known or ()):
            path.unlink()
    made.rmdir()
    sync_folder(Path(target))


def in_the_way(path: str) -> OutputError:
    """The error for a file at the output's path that is not the job's."""
    return OutputError(
        f"{path} has appeared or was changed since the job began, and is not overwritten. "
        "Move it away, and start the job again: what was done is kept. "
        "Or discard both with --fresh"
    )


def _place_file(made: Path, target: str, known: Stamp | None, name: str = "") -> None:
    try:
        os.link(made, target)  # which never replaces a file
    except OSError:  # a file is there, or there are no links, or it is another file system
        if os.path.lexists(target) and (known is None or [name, *_stat(target)] not in known):
            raise in_the_way(target) from None
        _replace(made, target)
    else:
        made.unlink()


def _replace(made: Path, target: str) -> None:
    try:
        os.replace(made, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        copy = Path(f"{target}.penstock-tmp")  # on the target's file system, with the same times
        copy.unlink(missing_ok=True)
        try:
            shutil.copy2(made, copy)
            with open(copy, "rb") as file:
                os.fsync(file.fileno())
            os.replace(copy, target)
        except OSError as failed:  # `copy2` names the file that it reads
            copy.unlink(missing_ok=True)
            raise OSError(failed.errno, failed.strerror, target) from error
        made.unlink()


def _stat(path: str | Path) -> tuple[int, int]:
    found = os.lstat(path)
    return found.st_size, found.st_mtime_ns
