"""`penstock run` and `penstock plan`, and the options that make up the request for each row."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import click

from penstock.cli.process import interruptible
from penstock.errors import ConfigError, OutputError
from penstock.observability import say

Command = Callable[..., Any]

_LOADED = (
    click.option(
        "--model", help="'demo', a model directory or file, or a hub id.  [default: demo]"
    ),
    click.option(
        "--engine",
        help=(
            "The engine that runs the model; openai-batch and anthropic-batch are those providers'"
            " batch APIs.  [default: openvino]"
        ),
    ),
    click.option(
        "--engine-kwargs", metavar="JSON", help="Options of the engine, as a JSON object."
    ),
    click.option(
        "--deterministic",
        is_flag=True,
        help=(
            "The same row gets the same answer whatever runs beside it, also in a resumed job."
            " Costs speed."
        ),
    ),
)
_INPUT = (
    click.option(
        "--prompt", metavar="TEXT", help="The user's message, with {column} as placeholder."
    ),
    click.option("--messages", metavar="COLUMN", help="The column that holds whole conversations."),
    click.option("--system", metavar="TEXT", help="A system message before each prompt."),
    click.option(
        "--adapter",
        metavar="COLUMN_OR_NAME",
        help="A column of LoRA adapter names, or one name or directory.",
    ),
    click.option(
        "--decide",
        metavar="FILE",
        help=(
            "Questions (YAML or JSON) about each prompt; each becomes the columns NAME and"
            " NAME_probabilities."
        ),
    ),
    click.option(
        "--choices",
        metavar="A,B,C",
        help="Which of these fits each prompt best: the columns choice and choice_probabilities.",
    ),
    click.option("--limit", type=click.IntRange(0), help="Read only this many rows."),
)
_ANSWERED = (
    click.option(
        "--embed",
        metavar="COLUMN",
        help=(
            "The column of texts that become vectors, or text with {column} in it: the column"
            " embedding."
        ),
    ),
    click.option(
        "--dimensions",
        type=click.IntRange(1),
        help="Numbers of a vector.  [default: the model's own]",
    ),
    click.option(
        "--input-type",
        type=click.Choice(["query", "document"]),
        help="Put the model's instruction for queries or documents before each text.",
    ),
    click.option(
        "--vector-type",
        type=click.Choice(["float32", "float16", "int8"]),
        help="Type of a vector's numbers.  [default: float32]",
    ),
    click.option(
        "--vectors",
        type=click.Choice(["dense", "multi", "sparse"]),
        help=(
            "One vector a text, one a token (late interaction), or indices and values (SPLADE)."
            "  [default: dense]"
        ),
    ),
    click.option(
        "--audio",
        metavar="COLUMN",
        help=(
            "The column of recordings that become text: bytes or paths. Of an INPUT of audio"
            " files: path."
        ),
    ),
    click.option("--language", metavar="CODE", help="That of all recordings.  [default: detected]"),
    click.option("--translate", is_flag=True, help="Recordings become English text."),
    click.option("--timestamps", is_flag=True, help="One more column, segments, with their times."),
    click.option("--hotwords", metavar="TEXT", help="Words to expect in recordings."),
    click.option(
        "--speak",
        metavar="COLUMN",
        help=(
            "The column of texts that are spoken into files of --audio-dir, or text with {column}."
        ),
    ),
    click.option("--voice", metavar="NAME", help="Who speaks.  [default: the model's own voice]"),
    click.option(
        "--audio-format",
        type=click.Choice(["wav", "mp3", "opus", "flac", "aac"]),
        help="Form of spoken files.  [default: wav]",
    ),
    click.option("--audio-dir", metavar="DIR", help="Where spoken files go."),
    click.option(
        "--attach",
        metavar="URL",
        help=(
            "A running server, whose engine does the work beside its other users; the key is"
            " PENSTOCK_API_KEY."
        ),
    ),
    click.option(
        "--image",
        metavar="COLUMN",
        help="A column of images before each prompt: bytes, paths or data URIs, PDFs too.",
    ),
    click.option(
        "--filter",
        metavar="QUESTION",
        help="Keep the rows to whose prompt the answer is yes.",
    ),
    click.option(
        "--threshold",
        type=click.FloatRange(0, 1),
        help="The least probability of yes of a row that is kept.  [default: 0.5]",
    ),
    click.option(
        "--cascade",
        metavar="LARGE_MODEL",
        help="Decisions and answers by a schema that --model is unsure of come from this one.",
    ),
    click.option(
        "--target-accuracy",
        type=click.FloatRange(0, 1),
        help=(
            "Of a cascade: the share of rows that get the large model's decision.  [default: 0.95]"
        ),
    ),
    click.option(
        "--delta",
        type=click.FloatRange(0, 1),
        help="Of a cascade: the risk that the target is missed.  [default: 0.05]",
    ),
    click.option(
        "--schema",
        metavar="FILE",
        help="A JSON Schema that answers follow; its fields become columns.",
    ),
    click.option(
        "--max-tokens",
        type=click.IntRange(1),
        help="Most tokens of an answer.  [default: the rest of the context]",
    ),
    click.option(
        "--temperature", type=click.FloatRange(0), help="[default: 0, the likeliest token]"
    ),
    click.option(
        "--top-p", type=click.FloatRange(0, 1, min_open=True), default=1.0, show_default=True
    ),
    click.option(
        "--top-k", type=click.IntRange(0), default=0, help="0: all tokens.", show_default=True
    ),
    click.option("--seed", type=int, help="Makes sampling repeatable."),
    click.option(
        "--stop",
        multiple=True,
        metavar="TEXT",
        help="Text that ends an answer before it; can be repeated.",
    ),
)


_KEPT = (
    click.option(
        "--on-length",
        default="keep",
        metavar="ACTION",
        help=(
            "'raise': ask again with twice the tokens for an answer that was cut off; 'truncate':"
            " shorten a prompt or a text to embed that is too long; 'raise,truncate': both. "
            " [default: keep]"
        ),
    ),
    click.option(
        "--on-invalid-json",
        type=click.Choice(["keep", "retry"]),
        default="keep",
        show_default=True,
        help="Whether an answer that breaks the schema is kept or tried again.",
    ),
    click.option(
        "--dead-letter",
        metavar="PATH",
        help="A .jsonl file for the rows that failed, in place of the output.",
    ),
    click.option(
        "--retry-failed", is_flag=True, help="Run the error rows of an earlier run again."
    ),
    click.option(
        "--incremental",
        is_flag=True,
        help=(
            "The input has grown or changed: run only new and changed rows, keep the answers to the"
            " others. For the first run too."
        ),
    ),
    click.option(
        "--key", metavar="COLUMN", help="Of --incremental: the column that tells rows apart."
    ),
)
"""What becomes of poor answers, and of those of an earlier run: `plan` needs to know it too."""


def what_is_loaded(command: Command) -> Command:
    """Add the options of the model and its engine to a command."""
    return with_options(_LOADED, command)


def what_is_input(command: Command) -> Command:
    """Add those of what each row is made into, and of questions about it."""
    return with_options(_INPUT, command)


def what_is_asked(command: Command) -> Command:
    """Add all options of what is asked, and of how it is answered."""
    return with_options((*_LOADED, *_INPUT, *_ANSWERED), command)


def what_is_kept(command: Command) -> Command:
    """Add those of what becomes of poor answers, and of those of an earlier run."""
    return with_options(_KEPT, command)


def with_options(options: tuple[Command, ...], command: Command) -> Command:
    """Add options to a command, in this order."""
    for option in reversed(options):
        command = option(command)
    return command


def json_object(text: str | None, field: str) -> dict[str, Any] | None:
    """The JSON object in an option; None for an absent option. Raises `ConfigError`."""
    if text is None:
        return None
    from penstock.parsing import decode_json

    try:
        value = decode_json(text)
    except ValueError as error:
        raise ConfigError(f"not valid JSON: {error}", field=field, value=text) from None
    if not isinstance(value, dict):
        raise ConfigError("must be a JSON object", field=field, value=text)
    return value


def check_place(path: str | None) -> None:
    """Raise `OutputError` now for a file that could not be written after all the work."""
    import os

    if path is None:
        return
    if os.path.isdir(path):
        raise OutputError(f"{path} cannot be written: it is a directory")
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        raise OutputError(f"{path} cannot be written: its directory does not exist")
    if not os.access(path if os.path.exists(path) else folder, os.W_OK):
        raise OutputError(f"{path} cannot be written: permission denied")


def check_picture(path: str | None) -> None:
    """As `check_place`. Raises `ConfigError` for a name that is not one of an SVG file."""
    check_place(path)
    if path is not None and not path.lower().endswith(".svg"):
        raise ConfigError("is drawn as SVG, so its name must end in .svg", field="picture")


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
    type=click.IntRange(1),
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
@click.option("--fresh", is_flag=True, help="Discard the results of an earlier run.")
@click.option(
    "--cache",
    metavar="DIR|URL",
    help="Answers that jobs share: those of deterministic requests to the same model.",
)
@click.option(
    "--cache-mb",
    type=click.IntRange(1),
    help="Most MiB of the cache; the oldest answers go.  [default: 10240]",
)
@click.option(
    "--cache-days",
    type=click.FloatRange(0, min_open=True),
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
    from penstock.batch.job.execution import JobInterrupted
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
