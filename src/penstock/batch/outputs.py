"""Where a job's results go: a file, a directory of Parquet, a URL, standard output, or memory."""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Callable, Iterable
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

from penstock import env
from penstock.batch import assemble
from penstock.batch.assemble import Segment
from penstock.batch.journal import remove, sync_folder
from penstock.batch.sources.files import filesystem, is_url
from penstock.errors import ConfigError, OutputError, PenstockError, printable

Form = Literal["jsonl", "csv", "parquet", "dataset"]
_FORMS: dict[str, Form] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".parquet": "parquet"}


class Output:
    """A file, directory or URL that a job writes. `folder` holds the job's state until it is complete, and
    after. Rows that failed go to `dead_letter`, a file of JSON lines, where one is given.

    Raises `ConfigError` for an unknown extension.
    """

    def __init__(self, path: str, dead_letter: str | None = None) -> None:
        if not path:
            raise ConfigError("must not be empty", field="output")
        if dead_letter is not None and (is_url(dead_letter) or not dead_letter.lower().endswith((".jsonl", ".ndjson"))):
            raise ConfigError("must be a local path ending in .jsonl", field="dead_letter", value=dead_letter)
        if dead_letter is not None and os.path.realpath(dead_letter) == os.path.realpath(path):
            raise ConfigError(f"{dead_letter} is the output", field="dead_letter", value=dead_letter)
        self.path = path
        self.dead_letter = dead_letter
        self.remote = is_url(path)
        self.form: Form
        if path.endswith("/") or (not self.remote and os.path.isdir(path)):
            self.form = "dataset"
        else:
            extension = os.path.splitext(path.lower())[1]
            if extension not in _FORMS:
                raise ConfigError(
                    f"{path}: unknown extension; known are {', '.join(_FORMS)}, "
                    "'/' at the end for a directory of Parquet files, and '-' for standard output",
                    field="output",
                    value=path,
                )
            self.form = _FORMS[extension]
        if self.remote:
            name = blake2b(path.encode(errors="surrogateescape"), digest_size=12).hexdigest()
            self.folder = _state_root() / name
        else:
            self.folder = Path(f"{path.rstrip('/')}.penstock")

    @property
    def columnar(self) -> bool:
        """Whether parts are Parquet; else they are JSON lines."""
        return self.form in ("parquet", "dataset")

    def part_name(self, stem: str) -> str:
        """The file name of a part."""
        return f"{stem}.{'parquet' if self.columnar else 'jsonl'}"

    def exists(self) -> bool:
        """Whether there is something at the place of the output. An empty directory is nothing."""
        if self.remote:
            fs, path = filesystem(self.path)
            return bool(fs.find(path) if self.form == "dataset" else fs.exists(path))
        if self.form == "dataset":
            return os.path.isdir(self.path) and bool(os.listdir(self.path))
        return os.path.exists(self.path)

    def stamp(self) -> list[list[Any]]:
        """Name, size and time of change of each file of the output: whoever edits one changes them."""
        try:
            if self.remote:
                fs, path = filesystem(self.path)
                found = sorted(fs.glob(f"{path.rstrip('/')}/*.parquet")) if self.form == "dataset" else [path]
                return [[printable(name.rpartition("/")[2]), int(fs.size(name) or 0), 0] for name in found]
            paths = glob.glob(os.path.join(glob.escape(self.path), "*.parquet"))
            files = [(path, os.stat(path)) for path in (sorted(paths) if self.form == "dataset" else [self.path])]
            return [[printable(os.path.basename(path)), stat.st_size, stat.st_mtime_ns] for path, stat in files]
        except OSError as error:
            raise OutputError(f"{self.path}: {error.strerror or error}") from error

    def prepare(self) -> None:
        """Make the state directory. Raises `ConfigError` or `OutputError` where nothing can be written."""
        if self.remote:
            filesystem(self.path)  # a missing package shows here
        else:
            _check_place(self.path, "output")
        if self.dead_letter is not None:
            _check_place(self.dead_letter, "dead_letter")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{self.folder}: {error.strerror or error}") from error

    def publish(self, rows: Callable[[], Iterable[Segment]], empty: Callable[[], Any], columns: list[str]) -> None:
        """Write the final output from the parts and put it in place at once.

        `empty` makes an Arrow table and `columns` name the columns for an output without rows. Raises
        `OutputError`.
        """
        target = self.folder / self.part_name("final") if self.form != "dataset" else self.folder / "final"
        try:
            remove(target)
            if self.form == "jsonl":
                assemble.write_jsonl(target, self.folder, rows())
            elif self.form == "csv":
                assemble.write_csv(target, self.folder, rows, columns)
            else:
                from penstock.batch import assemble_parquet

                write = assemble_parquet.write_dataset if self.form == "dataset" else assemble_parquet.write_parquet
                write(target, self.folder, rows, empty())
            if self.remote:
                self._upload(target)
            elif self.form == "dataset":
                self._place_files(target)
            else:
                os.replace(target, self.path)
                sync_folder(Path(self.path).absolute().parent)
        except OSError as error:
            raise OutputError(f"{self.path}: {error.strerror or error}") from error

    def publish_failed(self, rows: Iterable[Segment]) -> None:
        """Write the rows that failed to `dead_letter` and put it in place at once. Raises `OutputError`."""
        assert self.dead_letter is not None
        target = self.folder / "failed.jsonl"
        try:
            if self.columnar:
                from penstock.batch import assemble_parquet

                assemble_parquet.write_lines(target, self.folder, list(rows))
            else:
                assemble.write_jsonl(target, self.folder, rows)
            os.replace(target, self.dead_letter)
        except OSError as error:
            raise OutputError(f"{self.dead_letter}: {error.strerror or error}") from error

    def take_back(self, name: str) -> str:
        """Make the final output a part of its job again, called `name`. Returns the part's file name."""
        target = self.folder / (name if self.form == "dataset" else self.part_name(name))
        source = self.path
        try:
            remove(target)
            if self.remote:
                fs, path = filesystem(self.path)
                source = str(self.folder / "download")
                fs.get(path, source, recursive=self.form == "dataset")
            if self.form == "dataset":
                target.mkdir()
                for file in sorted(glob.glob(os.path.join(glob.escape(source), "*.parquet"))):
                    _link(file, target / os.path.basename(file))
            elif self.form == "csv":
                assemble.csv_to_jsonl(Path(source), target)
            else:
                _link(source, target)
            if self.remote:
                remove(Path(source))
        except OSError as error:
            raise OutputError(f"{self.path}: {error.strerror or error}") from error
        return target.name

    def _place_files(self, made: Path) -> None:
        final = Path(self.path)
        final.mkdir(exist_ok=True)
        names = sorted(path.name for path in made.iterdir())
        for name in names:
            os.replace(made / name, final / name)
        for path in final.glob("part-*.parquet"):
            if path.name not in names:
                path.unlink()
        made.rmdir()
        sync_folder(final)

    def _upload(self, made: Path) -> None:
        fs, path = filesystem(self.path)
        try:
            if self.form == "dataset":
                fs.makedirs(path, exist_ok=True)
                names = sorted(file.name for file in made.iterdir())
                for name in names:
                    fs.put_file(str(made / name), f"{path.rstrip('/')}/{name}")
                for old in fs.glob(f"{path.rstrip('/')}/part-*.parquet"):
                    if old.rpartition("/")[2] not in names:
                        fs.rm_file(old)
            else:
                fs.put_file(str(made), path)
        except PenstockError:
            raise
        except Exception as error:  # each file system has errors of its own
            raise OutputError(f"{self.path}: {error}") from error
        remove(made)


def _check_place(path: str, field: str) -> None:
    parent = os.path.dirname(path.rstrip("/")) or "."
    if not os.path.isdir(parent):
        raise ConfigError(f"{path}: there is no directory {parent}", field=field, value=path)
    if not os.access(parent, os.W_OK):
        raise OutputError(f"{path}: no permission to write in {parent}")


def _link(source: str, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # not every file system has links
        shutil.copyfile(source, target)


def _state_root() -> Path:
    return Path(env.state_dir())
