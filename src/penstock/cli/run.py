"""`penstock run`."""

from __future__ import annotations

from typing import Any

import click

_EXAMPLES = """
\b
Examples:
  penstock run tickets.jsonl -o answers.jsonl --prompt 'Sort this ticket: {text}' --schema ticket.json
  penstock run chats.parquet -o out.parquet --model ./llama-ir --messages conversation --max-tokens 256
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
    help="Path or URL ending in .jsonl, .parquet or .csv; a directory ending in '/' for Parquet; '-' for stdout.",
)
@click.option("--model", help="'demo', a model directory or file, or a hub id.  [default: demo]")
@click.option("--engine", help="The engine that runs it.  [default: openvino]")
@click.option("--engine-kwargs", metavar="JSON", help="Options of the engine, as a JSON object.")
@click.option("--prompt", metavar="TEXT", help="Text with {column} in it: the user's message.")
@click.option("--messages", metavar="COLUMN", help="The column that holds whole conversations.")
@click.option("--system", metavar="TEXT", help="A system message before each prompt.")
@click.option("--schema", metavar="FILE", help="A JSON Schema that answers follow; its fields become columns.")
@click.option("--adapter", metavar="COLUMN_OR_NAME", help="A column of LoRA adapter names, or one name or directory.")
@click.option(
    "--max-tokens", type=click.IntRange(1), help="Most tokens of an answer.  [default: what the context leaves]"
)
@click.option("--temperature", type=click.FloatRange(0), help="[default: 0, the likeliest token]")
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), default=1.0, show_default=True)
@click.option("--top-k", type=click.IntRange(0), default=0, help="0: all tokens.", show_default=True)
@click.option("--seed", type=int, help="Makes sampling repeatable.")
@click.option("--stop", multiple=True, metavar="TEXT", help="Ends an answer where it would come; can be repeated.")
@click.option("--limit", type=click.IntRange(0), help="Read only this many rows.")
@click.option(
    "--order", type=click.Choice(["input", "done"]), default="input", show_default=True, help="Order of output."
)
@click.option(
    "--on-error",
    type=click.Choice(["keep", "fail"]),
    default="keep",
    show_default=True,
    help="A failing row becomes an error row, or ends the job.",
)
@click.option("--max-attempts", type=click.IntRange(1), default=3, show_default=True, help="Attempts at each row.")
@click.option(
    "--row-timeout",
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    help="A row that takes longer becomes an error row.  [default: no limit]",
)
@click.option("--retry-failed", is_flag=True, help="Run the error rows of an earlier run again.")
@click.option("--fresh", is_flag=True, help="Discard what an earlier run did.")
@click.option("--result-prefix", default="", metavar="TEXT", help="Goes before the names of result columns.")
@click.option("-q", "--quiet", is_flag=True, help="No progress, no summary.")
def run(source: str, output: str, engine_kwargs: str | None, quiet: bool, **options: Any) -> None:
    """Run a model over every row of INPUT.

    INPUT is a path, directory, glob or URL of Parquet, JSONL/NDJSON or CSV, or '-' for JSON lines on stdin. A
    job that was interrupted, however hard, is resumed by the same command.
    """
    from penstock.batch.interrupts import JobInterrupted
    from penstock.batch.job import Job
    from penstock.batch.progress import summary

    kwargs = _json_object(engine_kwargs, "engine_kwargs")
    job = Job(source, output, engine_kwargs=kwargs, progress=False if quiet else None, **options)
    try:
        result = job.run()
    except JobInterrupted as stop:  # click would take it for a Ctrl-C of its own
        click.echo(f"penstock: {stop}", err=True)
        raise SystemExit(128 + stop.signal) from None
    if not quiet:
        click.echo(summary(result), err=True)
    if result.counts.rows and not result.counts.ok:
        raise SystemExit(1)


def _json_object(text: str | None, field: str) -> dict[str, Any] | None:
    if text is None:
        return None
    import json

    from penstock.errors import ConfigError

    try:
        value = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"not valid JSON: {error}", field=field, value=text) from None
    if not isinstance(value, dict):
        raise ConfigError("must be a JSON object", field=field, value=text)
    return value
