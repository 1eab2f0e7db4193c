"""Which job a state directory belongs to, and whether it is complete."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct, field

from penstock.batch.journal import replace_file
from penstock.errors import JobError, JobMismatchError, printable

FILE = "manifest.json"
VERSION = 1


class StreamSum(Struct):
    """The rows of a stream: how many, and the sum of their digests."""

    rows: int
    digest: int


class Manifest(Struct):
    """`job` holds all that decides the output, `result` the counts of a complete job, `created` seconds since
    1970.

    `generation` is that of the journal in force. `stream` tells which rows a source without fingerprint gave,
    `published` what the files of the output were like when they were put in place.
    """

    job: dict[str, Any]
    status: Literal["running", "complete"] = "running"
    generation: int = 0
    version: int = VERSION
    created: int = field(default_factory=lambda: int(time.time()))
    result: dict[str, Any] = {}
    stream: StreamSum | None = None
    published: list[list[Any]] | None = None

    def save(self, folder: Path) -> None:
        """Write it, at once and for good. Raises `OutputError`."""
        replace_file(folder / FILE, msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n")

    def require(self, job: Mapping[str, Any], where: str) -> None:
        """Raise `JobMismatchError`, with a table of what differs, unless this is the manifest of `job`.

        `job` is as `normal` makes it.
        """
        differences = {
            name: (self.job.get(name), job.get(name))
            for name in {**self.job, **job}
            if self.job.get(name) != job.get(name)
        }
        if differences:
            raise JobMismatchError(
                f"{where} belongs to a different job:\n{_table(differences)}\n"
                "Give another output, or --fresh to discard what was done",
                differences,
            )


def normal(job: Mapping[str, Any]) -> dict[str, Any]:
    """The job as it comes back from a manifest: tuples are lists, what JSON does not know is text."""
    try:
        data = msgspec.json.encode(job, enc_hook=str)
    except UnicodeEncodeError:  # a byte in the name of a file
        data = msgspec.json.encode(_printable(job), enc_hook=str)
    plain: dict[str, Any] = msgspec.json.decode(data)
    return plain


def _printable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {_printable(key): _printable(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_printable(part) for part in value]
    return printable(value) if isinstance(value, str) else value


def load(folder: Path) -> Manifest | None:
    """The manifest in `folder`, if there is one. Raises `JobError` if it cannot be understood."""
    try:
        data = (folder / FILE).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise JobError(f"{folder / FILE} is damaged ({error}); --fresh discards the job") from None
    if manifest.version != VERSION:
        raise JobError(f"{folder / FILE} has version {manifest.version}, not {VERSION}; --fresh discards the job")
    return manifest


def _table(differences: Mapping[str, tuple[object, object]]) -> str:
    lines = [("", "journaled", "asked for")]
    lines += [(name, _short(old), _short(new)) for name, (old, new) in differences.items()]
    first, second = (max(len(line[column]) for line in lines) for column in (0, 1))
    return "\n".join(f"  {name:<{first}}  {old:<{second}}  {new}".rstrip() for name, old, new in lines)


def _short(value: object) -> str:
    if value is None:
        return "-"
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    text = text.replace("\n", "\\n")
    return text if len(text) <= 48 else f"{text[:45]}..."
