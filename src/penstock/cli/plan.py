"""`penstock plan`."""

from __future__ import annotations

from typing import Any

import click

from penstock.cli.job_options import json_object, what_is_asked
from penstock.cli.process import interruptible


@click.command(short_help="Say what a run will be like: rows, tokens, time.")
@click.argument("source", metavar="INPUT")
@what_is_asked
@click.option(
    "--trial", type=click.IntRange(0), default=32, show_default=True, help="Rows to ask for."
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def plan(source: str, engine_kwargs: str | None, trial: int, as_json: bool, **options: Any) -> None:
    """Read INPUT, ask for a few of its rows, and predict what `penstock run` would do: rows that
    fail before they are asked, duplicates, rows that are too long for the model, tokens, and the
    time at the speed that was measured. Writes nothing.
    """
    from penstock.batch.job.forecast import described
    from penstock.batch.job.job import Job

    job = Job(source, engine_kwargs=json_object(engine_kwargs, "engine_kwargs"), **options)
    with interruptible():
        found = job.plan(trial=trial)
    if as_json:
        import msgspec

        click.echo(msgspec.json.encode(found).decode())
    else:
        click.echo(described(found))
