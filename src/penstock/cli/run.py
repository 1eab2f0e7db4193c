"""`penstock run`."""

from __future__ import annotations

import signal
from typing import Any

import click

from penstock.cli.job_options import json_object, what_is_asked
from penstock.stderr import say

_EXAMPLES = """
\b
Examples:
  penstock run tickets.jsonl -o answers.jsonl --prompt 'Sort this: {text}' --schema ticket.json
  penstock run chats.parquet -o out.parquet --model ./llama-ir --messages conversation
  penstock run 'data/*.csv' -o out.csv --prompt 'Summarise: {body}' --limit 100
  penstock run requests.jsonl -o responses.jsonl          # input in OpenAI's batch form
  cat rows.jsonl | penstock run - -o - --prompt '{question}'
"""


@click.command(
    epilog=_EXAMPLES,
    short_help="Run a model over every row of a data set.",
)
@click.argument("source", metavar="INPUT")
@click.option(
    "-o",
    "--output",
    required=True,
    help=(
        "Path or URL ending in .jsonl, .parquet or .csv; a directory ending in '/' for Parquet; '-'"
        " for stdout."
    ),
)
@what_is_asked
@click.option("--runtime", type=click.Choice(["local", "ray"]), default="local", show_default=True)
@click.option(
    "--replicas",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Replicas of the engine, on Ray.",
)
@click.option(
    "--order",
    type=click.Choice(["input", "done"]),
    default="input",
    show_default=True,
    help="Order of output.",
)
@click.option(
    "--on-error",
    multiple=True,
    metavar="[KIND=]ACTION",
    help=(
        "How to handle failing rows, all or one kind of error; can be repeated: keep (an"
        " error row), skip (not in the output), fail (the job ends), retry (tried again, then"
        " kept).  [default: keep]"
    ),
)
@click.option(
    "--on-length",
    default="keep",
    metavar="ACTION",
    help=(
        "'raise': ask again with twice the tokens for an answer that was cut off; 'truncate':"
        " shorten a prompt that is too long; 'raise,truncate': both.  [default: keep]"
    ),
)
@click.option(
    "--on-invalid-json",
    type=click.Choice(["keep", "retry"]),
    default="keep",
    show_default=True,
    help="Whether an answer that breaks the schema is kept or tried again.",
)
@click.option(
    "--dead-letter",
    metavar="PATH",
    help="A .jsonl file for the rows that failed, in place of the output.",
)
@click.option(
    "--max-tokens-total",
    type=click.IntRange(1),
    help="Stop at this number of tokens, in prompts and answers.",
)
@click.option(
    "--max-error-rate",
    type=click.FloatRange(0, 1),
    help="Stop when a larger share of rows has failed.",
)
@click.option(
    "--deadline",
    metavar="WHEN",
    help="Stop then: '90s', '30m', '2h', or a time such as 2026-05-01T06:00.",
)
@click.option(
    "--max-attempts",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    help="Attempts at each row.",
)
@click.option(
    "--row-timeout",
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    help="A row that takes longer becomes an error row.  [default: no limit]",
)
@click.option("--retry-failed", is_flag=True, help="Run the error rows of an earlier run again.")
@click.option("--fresh", is_flag=True, help="Discard the results of an earlier run.")
@click.option(
    "--result-prefix", default="", metavar="TEXT", help="Prefix of the names of result columns."
)
@click.option(
    "-q", "--quiet", is_flag=True, help="No progress, no summary; only warnings and failures."
)
def run(source: str, output: str, engine_kwargs: str | None, quiet: bool, **options: Any) -> None:
    """Run a model over every row of INPUT.

    INPUT is a path, directory, glob or URL of Parquet, JSONL/NDJSON or CSV, or '-' for JSON lines
    on stdin. A job that was interrupted, however hard, is resumed by the same command.
    """
    from penstock.batch.job.execution import JobInterrupted
    from penstock.batch.job.job import Job
    from penstock.batch.job.result import summary

    kwargs = json_object(engine_kwargs, "engine_kwargs")
    options["on_error"] = _policy(options["on_error"])
    job = Job(source, output, engine_kwargs=kwargs, progress=False if quiet else None, **options)
    try:
        result = job.run()
    except JobInterrupted as stop:  # click would take it for a Ctrl-C
        # Another signal would kill the interpreter during its exit.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        say(f"penstock: {stop}")
        raise SystemExit(128 + stop.signal) from None
    if not quiet:
        say(summary(result))
    if result.counts.rows and not result.counts.ok:
        if quiet:  # quiet does not hide why a job failed
            kinds = ", ".join(
                f"{number:,} × {kind}" for kind, number in sorted(result.counts.errors.items())
            )
            say(f"penstock: all rows failed: {kinds}")
        raise SystemExit(1)


def _policy(given: tuple[str, ...]) -> str | dict[str, str]:
    """The value of `--on-error` in the form that `Job` takes."""
    actions = {}
    for part in given:
        kind, equals, action = part.rpartition("=")
        actions[kind if equals else "*"] = action
    return actions if actions else "keep"
