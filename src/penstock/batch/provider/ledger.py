"""Which batches of a job are at a provider: an append-only file, so that none is paid for twice.

A record is on disk before a batch is asked for, and another one after the provider has named it.
A job that was killed in between looks for the batch at the provider.

    batches/ledger.jsonl         what happened to each batch, a record each
    batches/TOKEN.requests.jsonl its lines
    batches/TOKEN.results.jsonl  the answers to them, once all have come
"""

from __future__ import annotations

import logging
import os
import secrets
from pathlib import Path
from typing import Any, BinaryIO, Literal

import msgspec
from msgspec import Struct, field

from penstock import private_files
from penstock.batch.write.journal import BATCHES
from penstock.batch.write.state_files import Records, guarded, remove, sync_folder, write_all
from penstock.errors import JobError, OutputError
from penstock.http.client import LARGE_BYTES

_log = logging.getLogger(__name__)

Event = Literal["begun", "uploaded", "created", "ended"]


class Entry(Struct, omit_defaults=True):
    """One thing that happened to the batch `token`."""

    token: str
    event: Event
    url: str = ""
    at: float = 0.0
    generation: int = 0
    id: str = ""
    status: str = ""
    files: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)


class _Id(Struct):
    custom_id: str


_id_of = msgspec.json.Decoder(_Id).decode


class Batch:
    """One batch: its lines by their ids, and how far it is.

    `at` is when it was begun, in Unix seconds, `generation` that of the journal then. `id` is the
    provider's name for it, `sure` that it is known to be this one; `doubtful` says, while it has no
    `id`, that it may have been handed in. `status` is the provider's last word, `refused` has what
    it said of single lines. `strangers` are the ids of batches that looked like this one and were
    not. `error` is why it cannot be gone on with.
    """

    def __init__(self, folder: Path, begun: Entry) -> None:
        self.token, self.url, self.at = begun.token, begun.url, begun.at
        self.generation = begun.generation
        self.requests = folder / f"{self.token}.requests.jsonl"
        self.results = folder / f"{self.token}.results.jsonl"
        self.lines: list[str] = []
        self.file: str | None = None
        self.id: str | None = None
        self.sure = False
        self.doubtful = True
        self.strangers: set[str] = set()
        self.status = ""
        self.files: list[str] = []
        self.refused: dict[str, str] = {}
        self.error: Exception | None = None
        self._places: dict[str, tuple[int, int]] | None = None

    @property
    def answered(self) -> bool:
        """Whether its results are here."""
        return self._places is not None

    @property
    def was_refused(self) -> bool:
        """Whether the provider refused it as a whole."""
        return self.status == "failed" and not self.refused

    def read_lines(self) -> None:
        """Learn the ids of its lines. Raises `JobError` if they are not all there."""
        try:
            with open(self.requests, "rb") as file:
                self.lines = [_id_of(line).custom_id for line in file]
        except (OSError, msgspec.DecodeError) as error:
            raise JobError(f"{self.requests} is damaged ({error}); --fresh begins again") from None

    def index(self) -> None:
        """Learn where the results are that have been fetched."""
        places: dict[str, tuple[int, int]] = {}
        start = 0
        with open(self.results, "rb") as file:
            for line in file:
                if line.strip():
                    try:
                        places[_id_of(line).custom_id] = start, len(line)
                    except msgspec.DecodeError:
                        _log.warning("%s: a line that cannot be read answers no row", self.results)
                start += len(line)
        self._places = places

    def is_its_own(self) -> bool:
        """Whether its results are to its lines: another batch has other ids."""
        return not self._places or not self._places.keys().isdisjoint(self.lines)

    def forget_results(self) -> None:
        self._places = None
        self.results.unlink(missing_ok=True)

    def result(self, custom_id: str) -> bytes | None:
        """The line of results with that id; None if there is none."""
        place = (self._places or {}).get(custom_id)
        if place is None:
            return None
        with open(self.results, "rb") as file:
            file.seek(place[0])
            return file.read(place[1])

    def apply(self, entry: Entry) -> None:
        match entry.event:
            case "uploaded":
                self.file = entry.id
            case "created":
                self.id, self.sure = entry.id, True
            case "ended":
                self.status, self.files, self.refused = entry.status, entry.files, entry.refused
            case _:
                pass


class Gathering:
    """Lines of the batch that is to be handed in next."""

    def __init__(self, folder: Path, token: str, url: str) -> None:
        self.token, self.url = token, url
        self.lines: list[str] = []
        self.nbytes = 0
        self.since = 0.0
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        path = folder / f"{token}.requests.jsonl"
        self.file: BinaryIO = os.fdopen(private_files.opener(path, flags), "wb", LARGE_BYTES)

    def add(self, custom_id: str, line: bytes) -> None:
        self.file.write(line)
        self.lines.append(custom_id)
        self.nbytes += len(line)

    def close(self) -> None:
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()


class Ledger:
    """The batches of the job with this `key`, in the state directory `state`."""

    def __init__(self, state: Path, key: int, generation: int) -> None:
        self.folder = state / BATCHES
        self.generation = generation
        self.batches: dict[str, Batch] = {}
        self._records = Records(self.folder / "ledger.jsonl", key)
        self._descriptor = -1
        self._broken = False

    def open(self) -> None:
        """Read what earlier runs did. Raises `JobError` if that is damaged, as batches might be
        paid for twice.
        """
        guarded(private_files.make_folder, self.folder)
        records = self._records
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self._descriptor = guarded(private_files.opener, records.path, flags)
        found = records.read()
        if records.lost:
            raise JobError(
                f"{records.path} is damaged, so batches might be paid for twice; --fresh begins"
                " again"
            )
        records.cut()
        for data in found:
            entry = msgspec.json.decode(data, type=Entry)
            if entry.event == "begun":
                self.batches[entry.token] = Batch(self.folder, entry)
            else:
                self.batches[entry.token].apply(entry)
        for path in self.folder.iterdir():
            if path != records.path and path.name.partition(".")[0] not in self.batches:
                guarded(remove, path)  # lines that were never handed in
        for batch in self.batches.values():
            batch.read_lines()
            if batch.results.exists():
                batch.index()
                if not batch.sure and not batch.is_its_own():
                    batch.forget_results()  # the job was killed before it saw whose they are

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def new_token(self) -> str:
        return secrets.token_hex(8)

    def begin(self, token: str, url: str, at: float, lines: list[str]) -> Batch:
        """Note that a batch of these lines is about to be asked for. They are on disk already."""
        begun = Entry(token, "begun", url=url, at=at, generation=self.generation)
        sync_folder(self.folder)
        self._write(begun)
        batch = self.batches[token] = Batch(self.folder, begun)
        batch.lines = lines
        batch.doubtful = False
        return batch

    def note(self, batch: Batch, event: Event, **fields: Any) -> None:
        """Note what happened to a batch."""
        entry = Entry(batch.token, event, **fields)
        self._write(entry)
        batch.apply(entry)

    def _write(self, entry: Entry) -> None:
        if self._broken:
            raise OutputError(f"{self._records.path}: an earlier record could not be written")
        self._broken = True  # what came after a torn or missing record would look damaged
        write_all(self._descriptor, self._records.seal(msgspec.json.encode(entry)))
        guarded(os.fsync, self._descriptor)
        self._broken = False
