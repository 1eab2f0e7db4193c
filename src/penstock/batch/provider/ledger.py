"""Which batches of a job are at a provider: an append-only file, so that none of them is paid for
twice.

One record is on disk before the provider is asked for a batch, another one after it has named the
batch. A job that was killed in between looks for the batch at the provider.

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
    """A record of the ledger: one thing that happened to the batch `token`. "begun": the provider
    is about to be asked for it. The other fields are those of `Batch`.
    """

    token: str
    event: Event
    url: str = ""
    begun_at: float = field(default=0.0, name="at")
    generation: int = 0
    id: str = ""
    status: str = ""
    result_paths: list[str] = field(default_factory=list, name="files")
    line_errors: dict[str, str] = field(default_factory=dict, name="refused")


class _Id(Struct):
    custom_id: str


_id_of = msgspec.json.Decoder(_Id).decode


class Batch:
    """One batch: the ids of its lines, and how far it is.

    `begun_at` is when it was begun, in Unix seconds, `generation` that of the journal then. `lines`
    are the ids of its lines, `input_file_id` is the provider's id of the file with them. `id` is
    the provider's name for the batch; unless `id_is_certain`, it is that of a batch which only
    looks alike. `maybe_submitted`: a run may have sent the batch and been killed before the answer,
    so look for it first (`BatchApi.find`). `strangers` are the ids of batches that looked alike and
    turned out to be others. `status` is the provider's last word. `result_paths` are where the
    results are downloaded from, below `base_url`. `line_errors` has the provider's messages about
    single lines, by line id. `error` is why the batch cannot be gone on with.
    """

    def __init__(self, folder: Path, begun: Entry) -> None:
        self.token, self.url, self.begun_at = begun.token, begun.url, begun.begun_at
        self.generation = begun.generation
        self.requests = folder / f"{self.token}.requests.jsonl"
        self.results = folder / f"{self.token}.results.jsonl"
        self.lines: list[str] = []
        self.input_file_id: str | None = None
        self.id: str | None = None
        self.id_is_certain = False
        self.maybe_submitted = True
        self.strangers: set[str] = set()
        self.status = ""
        self.result_paths: list[str] = []
        self.line_errors: dict[str, str] = {}
        self.error: Exception | None = None
        self._places: dict[str, tuple[int, int]] | None = None

    @property
    def answered(self) -> bool:
        """Whether its results are here."""
        return self._places is not None

    @property
    def failed_whole(self) -> bool:
        """Whether the provider refused the batch itself, and not single lines."""
        return self.status == "failed" and not self.line_errors

    def read_lines(self) -> None:
        """Read the ids of its lines. Raises `JobError` if a line is damaged or missing."""
        try:
            with open(self.requests, "rb") as file:
                self.lines = [_id_of(line).custom_id for line in file]
        except (OSError, msgspec.DecodeError) as error:
            raise JobError(f"{self.requests} is damaged ({error}); --fresh begins again") from None

    def index(self) -> None:
        """Note where each result lies in the file of those that have been downloaded."""
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

    def results_are_of_its_lines(self) -> bool:
        """Whether the results have ids of its lines: those of another batch have other ids."""
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
                self.input_file_id = entry.id
            case "created":
                self.id, self.id_is_certain = entry.id, True
            case "ended":
                self.status = entry.status
                self.result_paths, self.line_errors = entry.result_paths, entry.line_errors
            case _:
                pass


class Gathering:
    """The lines of the batch that is to be submitted next, on their way to its file. `since`: when
    the last one was added, in the event loop's time.
    """

    def __init__(self, folder: Path, token: str, url: str) -> None:
        self.token, self.url = token, url
        self.lines: list[str] = []
        self.nbytes = 0
        self.since = 0.0
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        path = folder / f"{token}.requests.jsonl"
        self.out: BinaryIO = os.fdopen(private_files.opener(path, flags), "wb", LARGE_BYTES)

    def add(self, custom_id: str, line: bytes) -> None:
        self.out.write(line)
        self.lines.append(custom_id)
        self.nbytes += len(line)

    def close(self) -> None:
        self.out.flush()
        os.fsync(self.out.fileno())
        self.out.close()


class Ledger:
    """The batches of a job, in its state directory `state`. `key` is the job's; the checksums of
    records start from it.
    """

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
                guarded(remove, path)  # lines that were never submitted
        for batch in self.batches.values():
            batch.read_lines()
            if batch.results.exists():
                batch.index()
                if not batch.id_is_certain and not batch.results_are_of_its_lines():
                    batch.forget_results()  # the job was killed before it compared the ids

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def new_token(self) -> str:
        return secrets.token_hex(8)

    def begin(self, token: str, url: str, begun_at: float, lines: list[str]) -> Batch:
        """Note that the provider is about to be asked for a batch of these lines, which are on disk
        already.
        """
        begun = Entry(token, "begun", url=url, begun_at=begun_at, generation=self.generation)
        sync_folder(self.folder)
        self._write(begun)
        batch = self.batches[token] = Batch(self.folder, begun)
        batch.lines = lines
        batch.maybe_submitted = False
        return batch

    def note(self, batch: Batch, event: Event, **fields: Any) -> None:
        """Note what happened to a batch."""
        entry = Entry(batch.token, event, **fields)
        self._write(entry)
        batch.apply(entry)

    def _write(self, entry: Entry) -> None:
        if self._broken:
            raise OutputError(f"{self._records.path}: an earlier record could not be written")
        # It stays set if the write raises: what came after a torn or missing record would look
        # damaged.
        self._broken = True
        write_all(self._descriptor, self._records.seal(msgspec.json.encode(entry)))
        guarded(os.fsync, self._descriptor)
        self._broken = False
