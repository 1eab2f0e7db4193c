"""Audio files as a data set: a row for each, with its path."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from penstock.batch.read.files import DataFile, fingerprint
from penstock.batch.read.sources import Rows
from penstock.batch.rows.row import Row


class Recordings(Rows):
    """The files that a path stands for, in the column `path`."""

    def __init__(self, path: str, files: Sequence[DataFile]) -> None:
        super().__init__([{"path": file.path} for file in files])
        self.name = path
        self.fingerprint = fingerprint(path, list(files))
        self.json_values = True
        self._paths = {os.path.realpath(file.path) for file in files}

    def batches(self, start: int = 0, columns: Sequence[str] | None = None) -> Iterator[list[Row]]:
        return Rows(self._all or ()).batches(start)  # any number of times

    def every_column(self) -> tuple[str, ...]:
        return ("path",)

    def reads(self, path: str) -> bool:
        return os.path.realpath(path) in self._paths
