"""`penstock jobs`: batch jobs of this machine, or the batches of a server."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from penstock.errors import ConfigError, InputError, JobError
from penstock.observability import say

if TYPE_CHECKING:
    from penstock.batch.monitor.status import Status
    from penstock.serve.client import Client

_EPILOG = """\b
Examples:
  penstock jobs list
  penstock jobs show labels.parquet --follow
  penstock jobs pause 3fa9c1d2
  penstock jobs tail labels.parquet -f
  penstock jobs list --url http://localhost:8000
  penstock jobs list --metrics > /var/lib/node_exporter/penstock.prom

JOB is the id that `list` shows, its first digits, or the job's output.
"""
_FOLLOW_SECONDS = 1.0
_PATIENCE_S = 1.0
"""For each job of a list."""
_UNDER_WAY = ("validating", "in_progress", "finalizing", "cancelling", "canceling")
"""The states of a server's batch that has not ended; the last one is Anthropic's spelling."""
Command = Callable[..., Any]


@click.group(short_help="See and steer batch jobs.", epilog=_EPILOG)
def jobs() -> None:
    """See and steer batch jobs: those of `penstock run` on this machine, from any terminal, or with
    --url the batches of a server.
    """


def _of_server(command: Command) -> Command:
    command = click.option(
        "--api-key",
        envvar="PENSTOCK_API_KEY",
        callback=_check_key,
        help="Key of that server.  [env: PENSTOCK_API_KEY]",
    )(command)
    # It is eager, so that the check of the key sees it in whatever order they stand.
    where = click.option("--url", metavar="URL", is_eager=True, help="The batches of this server.")
    return where(command)


def _check_key(context: click.Context, parameter: click.Parameter, given: str | None) -> str | None:
    typed = context.get_parameter_source("api_key") is click.core.ParameterSource.COMMANDLINE
    if typed and context.params.get("url") is None:
        raise ConfigError("is of a server: --url names it", field="api_key")
    return given


_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, an object a job.")


@jobs.command(name="list", short_help="List jobs.")
@click.argument("place", metavar="[DIRECTORY]", required=False)
@_of_server
@_as_json
@click.option("--metrics", is_flag=True, help="Print metrics in Prometheus' text form.")
def list_(
    place: str | None, url: str | None, api_key: str | None, as_json: bool, metrics: bool
) -> None:
    """List the jobs of this user, the latest last; or those whose outputs lie in DIRECTORY and
    below it.
    """
    from penstock.cli.process import plain_table

    if as_json and metrics:
        raise ConfigError("has a form of its own, which is not JSON", field="metrics")
    if url is not None:
        if place is not None or metrics:
            name = "DIRECTORY" if place is not None else "metrics"
            raise ConfigError("is of local jobs", field=name)
        batches = list(_client(url, api_key).batches())
        if as_json:
            return _print_json(batches)
        head = ("batch", "state", "done", "failed", "begun", "endpoint")
        return click.echo(plain_table([head, *map(_batch_row, batches)]))
    from penstock.batch.monitor.status import known_folders

    found = [status for folder in known_folders(place) if (status := _listed(folder)) is not None]
    found.sort(key=lambda status: status.started)
    if as_json:
        return _print_json([_plain(status) for status in found])
    if metrics:
        return click.echo(_metrics(found))
    columns = ("job", "state", "rows", "failed", "rows/s", "begun", "output")
    click.echo(plain_table([columns, *map(_job_row, found)]))


@jobs.command(short_help="Show a job.")
@click.argument("job")
@_of_server
@_as_json
@click.option("-f", "--follow", is_flag=True, help="A line each second, until the job ends.")
def show(job: str, url: str | None, api_key: str | None, as_json: bool, follow: bool) -> None:
    """Show what JOB does, and how far it is."""
    from penstock.cli.process import interruptible, plain_table

    if url is not None:
        read: Callable[[], dict[str, Any]] = lambda: _client(url, api_key).batch(job)  # noqa: E731
        alive: tuple[str, ...] = _UNDER_WAY
    else:
        from penstock.batch.monitor.status import ALIVE, find

        folder = find(job)
        read = lambda: _plain(_live(folder, job))  # noqa: E731
        alive = ALIVE
    with interruptible():
        while True:
            found = read()
            ended = _state(found) not in alive
            if as_json:
                click.echo(json.dumps(found, ensure_ascii=False))
            elif follow and not ended:
                click.echo(_line(found))
            else:
                rows = [(name, _cell(name, value)) for name, value in found.items()]
                click.echo(plain_table([row for row in rows if row[1]]))
            if ended or not follow:
                return
            time.sleep(_FOLLOW_SECONDS)


@jobs.command(short_help="Let a job finish the rows in flight, and start no more.")
@click.argument("job")
@_of_server
def pause(job: str, url: str | None, api_key: str | None) -> None:
    """Let JOB finish the rows in flight, and start no more. Its engine stays loaded."""
    _steer(job, "pause", url, api_key)


@jobs.command(short_help="Let a paused job go on.")
@click.argument("job")
@_of_server
def resume(job: str, url: str | None, api_key: str | None) -> None:
    """Let a paused JOB go on. One that has ended goes on with the command that began it."""
    _steer(job, "resume", url, api_key)


@jobs.command(short_help="End a job; what is done is kept.")
@click.argument("job")
@_of_server
def cancel(job: str, url: str | None, api_key: str | None) -> None:
    """End JOB when the rows in flight are finished; a second time, at once. What is done is kept:
    the command that began the job takes it up again.
    """
    _steer(job, "cancel", url, api_key)


@jobs.command(short_help="Show the rows that a job finished last.")
@click.argument("job")
@_of_server
@click.option("-n", "--lines", type=click.IntRange(1, 16), default=10, show_default=True)
@click.option("-f", "--follow", is_flag=True, help="Go on until the job ends.")
def tail(job: str, url: str | None, api_key: str | None, lines: int, follow: bool) -> None:
    """Show the rows that JOB finished last, as JSON lines. Of a job that has ended: the last lines
    of its output.
    """
    from penstock.cli.process import interruptible

    with interruptible():
        if url is not None:
            if follow:
                raise ConfigError("is of local jobs", field="follow")
            last: Iterable[str] = deque(_output_of(_client(url, api_key), job), maxlen=lines)
        else:
            last = _local_tail(job, lines, follow=follow)
        for line in last:
            click.echo(line)


def _local_tail(job: str, lines: int, *, follow: bool) -> Iterator[str]:
    from penstock.batch.monitor.control import ask
    from penstock.batch.monitor.status import find

    folder = find(job)
    after = -1
    while (answer := ask(folder, "tail", after=after)) is not None:
        rows = answer["rows"] if follow and after >= 0 else answer["rows"][-lines:]
        for row in rows:
            after = max(after, row.pop("number"))
            shown = {name: value for name, value in row.items() if value is not None}
            yield json.dumps(shown, ensure_ascii=False)
        if not follow:
            return
        time.sleep(_FOLLOW_SECONDS / 2)
    if after >= 0:
        return  # it ran, and has ended
    output = _live(folder, job).output
    if not output.lower().endswith((".jsonl", ".ndjson", ".csv")) or not Path(output).is_file():
        placed = Path(output).exists()
        why = "cannot be shown line by line" if placed else "is there once the job is complete"
        raise JobError(f"{job} does not run, and {output} {why}")
    with open(output, encoding="utf-8", errors="replace") as file:
        yield from (line.rstrip("\n") for line in deque(file, maxlen=lines))


def _output_of(client: Client, job: str) -> Iterator[str]:
    """The lines of a batch's answers."""
    batch = client.batch(job)
    if file := batch.get("output_file_id"):
        return client.file_lines(file)
    if batch.get("results_url"):
        return client.results(job)
    raise JobError(f"batch {job} has no output yet: it is {_state(batch)}")


def _client(url: str, api_key: str | None) -> Client:
    from penstock.serve.client import Client

    return Client(url, api_key)


def _steer(job: str, word: str, url: str | None, api_key: str | None) -> None:
    if url is not None:
        from penstock.serve.client import MESSAGE_BATCH

        if word != "cancel" and job.startswith(MESSAGE_BATCH):
            raise ConfigError(f"batches of messages cannot be {word}d", field="job", value=job)
        return click.echo(_line(_client(url, api_key).steer_batch(job, word)))
    from penstock.batch.monitor.control import ask
    from penstock.batch.monitor.status import find

    folder = find(job)
    answer = ask(folder, word)
    if answer is None:
        raise JobError(f"{job} does not run: it is {_live(folder, job).state}")
    click.echo(_line(answer))


def _listed(folder: Path) -> Status | None:
    """The status of one job among others: one that does not answer must not hide them."""
    from penstock.batch.monitor import control, status

    try:
        return control.live(folder, patience_s=_PATIENCE_S)
    except JobError as error:
        say(f"{error}; what it said last is shown")
        return status.load(folder)


def _live(folder: Path, job: str) -> Status:
    from penstock.batch.monitor.control import live

    status = live(folder)
    if status is None:
        raise InputError(f"there is no job '{job}'")
    return status


def _plain(status: Status) -> dict[str, Any]:
    import msgspec

    return dict(msgspec.to_builtins(status))


def _print_json(found: list[dict[str, Any]]) -> None:
    for one in found:
        click.echo(json.dumps(one, ensure_ascii=False))


def _line(found: dict[str, Any]) -> str:
    if "rows" not in found:  # a server's batch
        return "  ".join(_batch_row(found)[:4])
    done = _done(found["rows"], found["total"])
    return (
        f"{found['id']}  {found['state']}  {done} rows  {found['failed']:,} failed "
        f" {found['rows_per_second']:,.1f} rows/s  {found['tokens_per_second']:,.0f} tokens/s"
    )


def _job_row(status: Status) -> tuple[str, ...]:
    rows = _done(status.rows, status.total)
    speed = f"{status.rows_per_second:,.1f}"
    begun = _cell("started", status.started)
    return (status.id, status.state, rows, f"{status.failed:,}", speed, begun, status.output)


def _state(found: dict[str, Any]) -> str:
    """The state of a job, or of a batch in either form."""
    return str(found.get("state", found.get("status", found.get("processing_status"))))


def _done(rows: int, total: int | None) -> str:
    return f"{rows:,}" if total is None else f"{rows:,}/{total:,}"


def _batch_row(batch: dict[str, Any]) -> tuple[str, ...]:
    counts = batch.get("request_counts") or {}
    done, failed = counts.get("completed", 0), counts.get("failed", 0)
    total, endpoint = counts.get("total", 0), batch.get("endpoint", "")
    if "processing_status" in batch:  # Anthropic's
        done, failed = counts.get("succeeded", 0), counts.get("errored", 0)
        total, endpoint = sum(counts.values()), "/v1/messages"
    state = "paused" if batch.get("paused") else _state(batch)
    begun = _cell("created_at", batch.get("created_at"))
    return (str(batch.get("id")), state, _done(done, total), f"{failed:,}", begun, endpoint)


def _cell(name: str, value: Any) -> str:
    if value is None or value == {} or value == []:
        return ""
    if name in ("started", "updated") or name.endswith("_at"):
        try:
            if isinstance(value, str):  # Anthropic's
                value = datetime.fromisoformat(value).timestamp()
            return datetime.fromtimestamp(value).isoformat(" ", "seconds") if value else ""
        except (ValueError, OverflowError, OSError, TypeError):  # no time that there is
            return str(value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return ", ".join(f"{key}: {part}" for key, part in value.items() if part is not None)
    return f"{value:,}" if isinstance(value, int | float) and name != "pid" else str(value)


_METRICS = (
    ("rows", "counter", "Finished rows."),
    ("failed", "counter", "Rows that ended in an error."),
    ("prompt_tokens", "counter", "Tokens of prompts in this run."),
    ("completion_tokens", "counter", "Tokens generated in this run."),
    ("engine_calls", "counter", "Requests to the engine in this run."),
    ("from_cache", "counter", "Rows answered from the cache that jobs share."),
    ("kept", "counter", "Rows whose answer an earlier input had."),
    ("deduplicated", "counter", "Rows answered by an equal request."),
    ("rows_per_second", "gauge", "Speed now, or of the whole run."),
    ("tokens_per_second", "gauge", "Speed now, or of the whole run."),
    ("seconds", "gauge", "Time of this run."),
)


def _metrics(found: list[Status]) -> str:
    lines = []
    for name, kind, meaning in _METRICS:
        full = f"penstock_job_{name}{'_total' if kind == 'counter' else ''}"
        lines += [f"# HELP {full} {meaning}", f"# TYPE {full} {kind}"]
        for status in found:
            labels = f'job="{status.id}",output={_label(status.output)},state="{status.state}"'
            lines.append(f"{full}{{{labels}}} {getattr(status, name)}")
    return "\n".join(lines)


def _label(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
