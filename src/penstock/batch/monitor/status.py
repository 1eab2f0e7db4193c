"""The status of a job, which it keeps in its state directory, and the registry of a user's jobs.

A durable job writes `status.json` into its state directory each second, and a file with the place
of that directory into a registry, `registry/` in `env.state_dir()`.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct, field

from penstock import env, private_files
from penstock.batch.read.folders import STATE_END
from penstock.batch.write import manifest as manifests
from penstock.errors import InputError, JobError, nearest, printable

FILE = "status.json"
_STALE_SECONDS = 10.0

State = Literal[
    "loading", "running", "paused", "stopping", "complete", "stopped", "failed", "interrupted"
]
ALIVE = ("loading", "running", "paused", "stopping")


class Status(Struct):
    """A job: its `id`, what it reads and writes, its `state`, and its counts.

    `started` and `updated` are in Unix seconds, `seconds` is the time of this run. The two speeds
    are those of the last ten seconds while the job runs, then those of the whole run. `error` is
    why it failed. "interrupted" is a job whose process ended without writing its last status.
    """

    id: str
    output: str
    state: State
    input: str = ""
    model: str | None = None
    pid: int = 0
    started: float = 0.0
    updated: float = 0.0
    seconds: float = 0.0
    rows: int = 0
    total: int | None = None
    failed: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    resumed: int = 0
    kept: int = 0
    from_cache: int = 0
    deduplicated: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    engine_calls: int = 0
    rows_per_second: float = 0.0
    tokens_per_second: float = 0.0
    error: str | None = None


def id_of(folder: Path) -> str:
    """The id of the job with this state directory: eight hexadecimal digits."""
    name = os.fsencode(os.path.realpath(folder))
    return blake2b(name, digest_size=4).hexdigest()


def save(folder: Path, status: Status) -> None:
    """Write the status atomically. Nothing depends on it: a failure is ignored."""
    with contextlib.suppress(OSError):
        private_files.replace(folder / FILE, msgspec.json.encode(status))


def register(folder: Path) -> None:
    """Register where the job is. A failure is ignored: the job can be named by its output."""
    place = {"folder": os.fsencode(os.path.realpath(folder)).hex()}
    with contextlib.suppress(OSError):
        private_files.make_folder(_registry())
        private_files.replace(_registry() / f"{id_of(folder)}.json", msgspec.json.encode(place))


def load(folder: Path) -> Status | None:
    """The status of the job in this state directory, if there is one. It does not tell an
    interrupted job from a running one: see `control.live`.
    """
    with contextlib.suppress(OSError, msgspec.DecodeError, UnicodeDecodeError):
        return msgspec.json.decode((folder / FILE).read_bytes(), type=Status)
    return _of_manifest(folder)


def is_stale(status: Status) -> bool:
    """Whether the status has not been written for long."""
    return time.time() - status.updated > _STALE_SECONDS


def known_folders(place: str | None = None) -> Iterator[Path]:
    """The state directories in the registry, or those in and below the folder `place`. Entries of
    jobs that are gone are removed; those in a place that cannot be reached now are left out.
    """
    if place is not None:
        if not os.path.isdir(place):
            raise InputError(f"{place}: there is no such directory")
        for found, folders, _ in os.walk(place):
            for name in sorted(folders):
                if name.endswith(STATE_END):
                    yield Path(found, name)
            folders[:] = [name for name in sorted(folders) if not name.startswith(".")]
        return
    for path in sorted(_registry().glob("*.json")):
        try:
            named = msgspec.json.decode(path.read_bytes(), type=dict[str, str])["folder"]
            folder = Path(os.fsdecode(bytes.fromhex(named)))
        except (OSError, ValueError, KeyError):
            continue
        try:
            there = stat.S_ISDIR(folder.stat().st_mode)
        except (FileNotFoundError, NotADirectoryError):
            there = False
        except OSError:  # no permission, a mount that is down, a path that is too long
            continue
        if there:
            yield folder
        else:
            with contextlib.suppress(OSError):
                path.unlink()


def find(job: str) -> Path:
    """The state directory of a job, by its id, its output or that directory. Raises
    `InputError`.
    """
    for folder in (Path(job), Path(f"{job.rstrip('/')}{STATE_END}")):
        if os.path.isfile(folder / manifests.FILE):  # also false for a name that is too long
            return folder
    known = {id_of(folder): folder for folder in known_folders()}
    begins = [one for one in known if job and one.startswith(job)]
    if len(begins) == 1:
        return known[begins[0]]
    if begins:
        raise InputError(f"'{job}' is the beginning of several jobs: {', '.join(sorted(begins))}")
    for folder in known.values():  # the output is a URL, or was given in another way
        status = load(folder)
        if status is not None and status.output == printable(job):
            return folder
    raise InputError(
        f"there is no job '{job[:200]}'. {nearest(job, known) if known else ''}".strip()
    )


def _of_manifest(folder: Path) -> Status | None:
    output = printable(str(folder).removesuffix(STATE_END))
    try:
        manifest = manifests.load(folder)
    except JobError as error:
        return Status(id_of(folder), output, "failed", error=str(error))
    if manifest is None:
        return None
    result: dict[str, Any] = manifest.result
    errors = result.get("errors", {})
    return Status(
        id_of(folder),
        output,
        "complete" if manifest.status == "complete" else "interrupted",
        input=str(manifest.job.get("input", "")),
        model=manifest.job.get("model"),
        started=manifest.created,
        updated=manifest.created,
        rows=result.get("rows", 0),
        errors=errors,
        failed=sum(errors.values()),
    )


def _registry() -> Path:
    return Path(env.state_dir()) / "registry"
