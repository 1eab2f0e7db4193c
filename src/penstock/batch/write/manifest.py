"""Which job a state directory belongs to, and whether it is complete."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct, field

from penstock.batch.write.state_files import checksum, replace_file
from penstock.errors import JobError, JobMismatchError, JobVersionError, printable

FILE = "manifest.json"
VERSION = 2


LATER = {"conversion"}
"""Parts of a job's identity that came later: nobody knows what they were in a job without them."""
_INNER = {"what stages do", "stages", "conversion"}
"""Parts of a job's identity that another version of Penstock may write otherwise."""
_OTHER_VERSION = "If only Penstock has changed, finish the job with the version that began it."


class StreamSum(Struct):
    """The rows of a stream: how many, and the sum of their digests."""

    rows: int
    digest: int


Stamp = list[list[Any]]
"""Name, size and time of change of each file of an output. The name of a single file is empty."""


class Manifest(Struct):
    """`job` holds all that decides the output, `result` the counts of a complete job, `created`
    seconds since 1970.

    `key` is a random number that tells this job's records from those of other jobs. `generation` is
    the generation of the journal in force. `stream` tells which rows a source without fingerprint
    had. The outputs are "output" and "dead letter": `published` is what was found at their paths
    and may be replaced, `placing` is what is being put there while the status is "placing".
    `output_checksum` and `parts_checksum` are those of the output and the list of parts of a
    complete job; `checksum` is that of the manifest without this field.
    """

    job: dict[str, Any]
    status: Literal["running", "placing", "complete"] = "running"
    generation: int = 0
    version: int = VERSION
    created: int = field(default_factory=lambda: int(time.time()))
    key: int = field(default_factory=lambda: secrets.randbits(62))
    result: dict[str, Any] = {}
    stream: StreamSum | None = None
    published: dict[str, Stamp] = {}
    placing: dict[str, Stamp] = {}
    output_checksum: int = 0
    parts_checksum: int = 0
    checksum: str = ""

    def save(self, folder: Path) -> None:
        """Write the manifest atomically, and force it to disk. Raises `OutputError`."""
        self.checksum = self._own_checksum()
        replace_file(
            folder / FILE, msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"
        )

    def known(self, which: str) -> Stamp | None:
        """What is at an output's path and may be replaced; None: nothing there may be replaced."""
        found = [stamps[which] for stamps in (self.published, self.placing) if which in stamps]
        return [entry for stamp in found for entry in stamp] if found else None

    def _own_checksum(self) -> str:
        bare = msgspec.structs.replace(self, checksum="")
        return f"{checksum(msgspec.json.encode(bare)):016x}"

    def differences(self, job: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
        """Where `job`, as `normal` makes it, differs: by name, the value here and the value
        there.
        """
        unknown = LATER - self.job.keys()
        return {
            name: (self.job.get(name), job.get(name))
            for name in {**self.job, **job}
            if self.job.get(name) != job.get(name) and name not in unknown
        }

    def require(
        self,
        job: Mapping[str, Any],
        where: str,
        way_out: str = "Give another output, or --fresh to discard what was done",
    ) -> None:
        """Raise `JobMismatchError`, with a table of what differs, unless this is the manifest of
        `job`.

        `job` is as `normal` makes it.
        """
        differences = self.differences(job)
        if differences:
            if differences.keys() <= _INNER:
                way_out = f"{_OTHER_VERSION} {way_out}"
            raise JobMismatchError(
                f"{where} belongs to a different job:\n{_table(differences)}\n{way_out}",
                differences,
            )


def is_free(name: str) -> bool:
    """Whether this part of a job's identity may change in an incremental job: it decides which rows
    there are and how they are written, not what is asked.
    """
    return name.startswith("input") or name in ("limit", "order", "result prefix")


def normal(job: Mapping[str, Any]) -> dict[str, Any]:
    """The job as it is read back from a manifest: tuples are lists, and values that JSON lacks are
    text.
    """
    data = msgspec.json.encode(_printable(job), enc_hook=str)
    return msgspec.json.decode(data, type=dict[str, Any])


def _printable(value: Any) -> Any:
    match value:
        case Mapping():
            return {_printable(key): _printable(part) for key, part in value.items()}
        case list() | tuple():
            return [_printable(part) for part in value]
        case str():
            return printable(value)
        case _:
            return value


def load(folder: Path) -> Manifest | None:
    """The manifest in `folder`, or None. Raises `JobVersionError` for one of another version,
    `JobError` for a damaged one.
    """
    path = folder / FILE
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise JobError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        version = msgspec.json.decode(data, type=_Version).version
        manifest = msgspec.json.decode(data, type=Manifest) if version == VERSION else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise damaged(path) from None
    if manifest is None:
        raise JobVersionError(
            f"{path} has version {version}, and this Penstock reads version {VERSION}: finish the"
            " job with the Penstock that began it, or discard it with --fresh"
        )
    if manifest.checksum != manifest._own_checksum():
        raise damaged(path)
    return manifest


def damaged(path: Path) -> JobError:
    """The error of a manifest that is not as it was saved."""
    return JobError(
        f"{path} is damaged, so what was done cannot be told; --fresh discards it and begins anew"
    )


class _Version(Struct):
    version: int


def _table(differences: Mapping[str, tuple[object, object]]) -> str:
    lines = [("", "journaled", "asked for")]
    lines += [(name, _short(old), _short(new)) for name, (old, new) in differences.items()]
    first, second = (max(len(line[column]) for line in lines) for column in (0, 1))
    return "\n".join(
        f"  {name:<{first}}  {old:<{second}}  {new}".rstrip() for name, old, new in lines
    )


def _short(value: object) -> str:
    if value is None:
        return "-"
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    text = text.replace("\n", "\\n")
    return text if len(text) <= 48 else f"{text[:45]}..."
