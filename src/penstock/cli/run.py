"""`penstock run` and `penstock plan`."""

from __future__ import annotations

import signal
from typing import Any

import click

from penstock.cli.options import FiniteRange, WholeRange, json_object, what_is_asked, what_is_kept
from penstock.cli.process import interruptible
from penstock.errors import ConfigError
from penstock.observability import say

_EXAMPLES = """
\b
Examples:
  penstock run tickets.jsonl -o answers.jsonl --prompt 'Sort this: {text}' --schema ticket.json
  penstock run chats.parquet -o out.parquet --model ./llama-ir --messages conversation
  penstock run 'data/*.csv' -o out.csv --prompt 'Summarise: {body}' --limit 100
  penstock run tickets.jsonl -o sorted.csv --prompt '{ticket}' --choices billing,shipping,other
  penstock run tickets.jsonl -o angry.jsonl --prompt '{ticket}' --filter 'Is the customer angry?'
  penstock run tickets.jsonl -o decided.parquet --prompt '{ticket}' --decide questions.yaml
  penstock run tickets.jsonl -o decided.jsonl --prompt '{ticket}' --decide questions.yaml \\
    --cascade ./large-model --target-accuracy 0.95
  penstock run articles.parquet -o vectors.parquet --model ./minilm --embed body
  penstock run photos.parquet -o vectors.parquet --model ./qwen3-vl-emb --embed title --image photo
  penstock run all.parquet -o labels.parquet --prompt '{text}' --incremental --key id
  penstock run in.jsonl -o out.jsonl --prompt '{text}' --cache ~/answers --report job.html
  penstock run photos.parquet -o seen.jsonl --model ./llava-ir --image photo --prompt 'Describe it.'
  penstock run 'calls/*.mp3' -o calls.jsonl --model ./whisper-ir --audio path
  penstock run lines.csv -o spoken.csv --model ./speecht5-ir --speak line --audio-dir spoken
  penstock run requests.jsonl -o responses.jsonl          # input in OpenAI's batch form
  penstock run tickets.jsonl -o answers.jsonl --prompt '{ticket}' --attach http://localhost:8000
  cat rows.jsonl | penstock run - -o - --prompt '{question}'
"""


_result_prefix = click.option(
    "--result-prefix", default="", metavar="TEXT", help="Prefix of the names of result columns."
)


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
@what_is_kept
@click.option("--runtime", type=click.Choice(["local", "ray"]), default="local", show_default=True)
@click.option(
    "--replicas",
    type=WholeRange(1),
    default=1,
    show_default=True,
    help="Replicas of the engine; here they part the CPU cores among them.",
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
    "--max-tokens-total",
    type=WholeRange(1),
    help="Stop at this number of tokens, in prompts and answers.",
)
@click.option(
    "--max-error-rate",
    type=FiniteRange(0, 1),
    help="Stop when a larger share of rows has failed.",
)
@click.option(
    "--deadline",
    metavar="WHEN",
    help="Stop then: '90s', '30m', '2h', or a time such as 2026-05-01T06:00.",
)
@click.option(
    "--max-attempts",
    type=WholeRange(1),
    default=3,
    show_default=True,
    help="Attempts at each row.",
)
@click.option(
    "--row-timeout",
    type=FiniteRange(0, min_open=True),
    metavar="SECONDS",
    help="A row that takes longer becomes an error row.  [default: no limit]",
)
@click.option("--fresh", is_flag=True, help="Discard the results of an earlier run.")
@click.option(
    "--cache",
    metavar="DIR|URL",
    help="Answers that jobs share: those of deterministic requests to the same model.",
)
@click.option(
    "--cache-mb",
    type=WholeRange(1),
    help="Most MiB of the cache; the oldest answers go.  [default: 10240]",
)
@click.option(
    "--cache-days",
    type=FiniteRange(0, min_open=True),
    help="Age at which an answer in the cache expires.  [default: 30]",
)
@click.option(
    "--report",
    metavar="FILE.html",
    help="Write a page about the job when it ends: speed, tokens, latencies, errors, some rows.",
)
@_result_prefix
@click.option(
    "-q", "--quiet", is_flag=True, help="No progress, no summary; only warnings and failures."
)
def run(source: str, output: str, engine_kwargs: str | None, quiet: bool, **options: Any) -> None:
    """Run a model over every row of INPUT.

    INPUT is a path, directory, glob or URL of Parquet, JSONL/NDJSON or CSV, or '-' for JSON lines
    on stdin. A job that was interrupted, however hard, is resumed by the same command.
    """
    from penstock.batch.job.execution import ENDING, JobInterrupted
    from penstock.batch.job.job import Job
    from penstock.batch.job.result import summary

    kwargs = json_object(engine_kwargs, "engine_kwargs")
    options["model"] = _models(options.pop("cascade"), options["model"])
    options["on_error"] = _policy(options["on_error"])
    job = Job(source, output, engine_kwargs=kwargs, progress=False if quiet else None, **options)
    try:
        result = job.run()
    except JobInterrupted as stop:  # click would take it for a Ctrl-C
        # Another signal would kill the interpreter during its exit.
        for number in ENDING:
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


@click.command(short_help="Predict a run: rows, tokens, time.")
@click.argument("source", metavar="INPUT")
@click.option(
    "-o", "--output", help="Of --incremental: the output of earlier runs, whose answers are kept."
)
@what_is_asked
@what_is_kept
@_result_prefix
@click.option(
    "--trial",
    type=click.IntRange(0, 256),
    default=32,
    show_default=True,
    help="Rows to run for the estimate.",
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def plan(source: str, engine_kwargs: str | None, trial: int, as_json: bool, **options: Any) -> None:
    """Read INPUT, run a few of its rows, and predict `penstock run`: rows that fail before the
    model sees them, duplicates, rows too long for the model, tokens, and the time at the measured
    speed. With --incremental, also the rows whose answers are kept. Checks the output's place, and
    writes nothing.
    """
    from penstock.batch.job.forecast import described
    from penstock.batch.job.job import Job

    options["model"] = _models(options.pop("cascade"), options["model"])
    job = Job(source, engine_kwargs=json_object(engine_kwargs, "engine_kwargs"), **options)
    with interruptible():
        found = job.plan(trial=trial)
    if as_json:
        import msgspec

        click.echo(msgspec.json.encode(found).decode())
    else:
        click.echo(described(found))


def _models(large: str | None, model: str | None) -> str | list[str] | None:
    return model if large is None else ["demo" if model is None else model, large]


def _policy(given: tuple[str, ...]) -> str | dict[str, str]:
    """The value of `--on-error` in the form that `Job` takes. Raises `ConfigError` for two actions
    for one kind.
    """
    actions: dict[str, str] = {}
    for kind, equals, action in (part.rpartition("=") for part in given):
        name = kind if equals else "*"
        if name in actions:
            what = f"errors of kind {name}" if equals else "all errors"
            raise ConfigError(f"has two actions for {what}", field="on_error", value=action)
        actions[name] = action
    return actions or "keep"
