"""`penstock plan`."""

from __future__ import annotations

from typing import Any

import click

from penstock.cli.job_options import json_object, what_is_asked
from penstock.cli.process import interruptible


@click.command(short_help="Predict a run: rows, tokens, time.")
@click.argument("source", metavar="INPUT")
@what_is_asked
@click.option(
    "--trial",
    type=click.IntRange(0),
    default=32,
    show_default=True,
    help="Rows to run for the estimate.",
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def plan(source: str, engine_kwargs: str | None, trial: int, as_json: bool, **options: Any) -> None:
    """Read INPUT, run a few of its rows, and predict `penstock run`: rows that fail before the
    model sees them, duplicates, rows too long for the model, tokens, and the time at the measured
    speed. Writes nothing.
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
