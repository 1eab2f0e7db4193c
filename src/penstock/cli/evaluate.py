"""What is measured on labelled rows: `penstock eval` and `penstock calibrate`."""

from __future__ import annotations

from typing import Any

import click

from penstock.cli.options import (
    WholeRange,
    check_places,
    json_object,
    what_is_input,
    what_is_loaded,
)
from penstock.cli.process import interruptible
from penstock.errors import ConfigError
from penstock.observability import say

_EVAL_EXAMPLES = """
\b
Examples:
  penstock eval tickets.jsonl --form choice --expected category --prompt '{ticket}' \\
    --decide teams.yaml -o before.json
  penstock eval tickets.jsonl --form choice --expected category --prompt '{ticket}' \\
    --decide teams.yaml --model ./better-model --against before.json
  penstock eval questions.jsonl --form exact --expected answer --prompt '{question}'
  penstock eval answers.jsonl --form pair --pair new,old --prompt '{question}' --model ./judge
"""


@click.command(
    name="eval",
    epilog=_EVAL_EXAMPLES,
    short_help="Score a model on a file, and compare two scores.",
)
@click.argument("source", metavar="INPUT")
@click.option(
    "--form",
    type=click.Choice(["choice", "exact", "schema", "pair"]),
    default="exact",
    show_default=True,
    help=(
        "choice: the likeliest option is the expected one; exact: the answer is the expected text;"
        " schema: the answer follows the schema, unconstrained; pair: which of two answers the"
        " model finds better, asked in both orders."
    ),
)
@click.option("--expected", metavar="COLUMN", help="The column with what is right.")
@click.option("--schema", metavar="FILE", help="The JSON Schema that answers are to follow.")
@click.option("--pair", metavar="COLUMN,COLUMN", help="The columns with the two answers.")
@click.option("-o", "--output", metavar="FILE", help="Where the scores are written, as JSON.")
@click.option("--against", metavar="FILE", help="Earlier scores, to compare with row by row.")
@what_is_loaded
@what_is_input
@click.option("--max-tokens", type=WholeRange(1), help="Most tokens of an answer.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON objects.")
def evaluate(
    source: str,
    form: Any,
    pair: str | None,
    output: str | None,
    against: str | None,
    engine_kwargs: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Ask the rows of INPUT and score each from 0 to 1. Prints the mean with its 95 % confidence
    interval, and with --against the difference from earlier scores of the same rows. Nothing is
    drawn at random, so there is no seed: answers are the likeliest tokens, and intervals come from
    formulas. --deterministic keeps even the rounding of the engine out of a comparison.
    """
    import asyncio

    import msgspec

    from penstock.batch.evaluation import aevaluate, compared, load

    check_places(output=output)
    before = load(against, form) if against is not None else None
    options = {name: value for name, value in options.items() if value is not None}
    options["engine_kwargs"] = json_object(engine_kwargs, "engine_kwargs")
    columns = None if pair is None else [part.strip() for part in pair.split(",")]
    with interruptible():
        found: Any = asyncio.run(aevaluate(source, form, pair=columns, **options))
    # What can fail comes after what the work has found.
    click.echo(found.json() if as_json else str(found))
    if output is not None:
        found.save(output)
    if before is not None:
        difference = compared(before, found)
        click.echo(msgspec.json.encode(difference) if as_json else str(difference))
    if found.failed == len(found.scores):
        raise SystemExit(1)


_CALIBRATE_EXAMPLES = """
\b
Examples:
  penstock calibrate labelled.jsonl --labels category -o calibration.json --prompt '{ticket}' \\
    --decide questions.yaml
  penstock calibrate labelled.csv --labels urgent=is_urgent --labels team=team \\
    -o calibration.json --picture reliability.svg --prompt '{text}' --decide questions.yaml
\b
Then, in questions.yaml:
  calibration: calibration.json
"""


@click.command(
    epilog=_CALIBRATE_EXAMPLES,
    short_help="Make the probabilities of decisions agree with how often they hold.",
)
@click.argument("source", metavar="INPUT")
@click.option(
    "--labels",
    multiple=True,
    required=True,
    metavar="[QUESTION=]COLUMN",
    help="The column with the right options; can be repeated, for several questions.",
)
@click.option("-o", "--output", metavar="FILE", help="Where the calibration is written, as JSON.")
@click.option("--picture", metavar="FILE.svg", help="Where reliability diagrams are written.")
@click.option(
    "--folds",
    type=WholeRange(2),
    default=5,
    show_default=True,
    help="Parts of the cross-validation.",
)
@what_is_loaded
@what_is_input
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def calibrate(
    source: str,
    labels: tuple[str, ...],
    output: str | None,
    picture: str | None,
    engine_kwargs: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Ask the questions about the labelled rows of INPUT, and fit a temperature and a bias for each
    option. Shows accuracy and expected calibration error before and after, of rows that the fit has
    not seen. The file it writes is what `calibration:` in a file of questions takes.
    """
    import asyncio

    import msgspec

    from penstock.batch.decisions.calibrate import acalibrate

    given = _by_question(labels)
    check_places(output=output, picture=picture)
    kwargs = json_object(engine_kwargs, "engine_kwargs")
    with interruptible():
        fits = asyncio.run(acalibrate(source, given, engine_kwargs=kwargs, **options))
    # What can fail comes after what the work has found.
    click.echo(msgspec.json.encode(fits) if as_json else str(fits))
    for what, path, write in (
        ("Calibration", output, fits.save),
        ("Picture", picture, fits.draw),
    ):
        if path is not None:
            write(path)
            say(f"{what}: {path}")


def _by_question(labels: tuple[str, ...]) -> str | dict[str, str]:
    """The one column, or the column of each question."""
    if len(labels) == 1 and "=" not in labels[0]:
        return labels[0]
    columns: dict[str, str] = {}
    for text in labels:
        name, _, column = text.rpartition("=")
        if not name or not column:
            raise ConfigError("give each as QUESTION=COLUMN", field="labels", value=text)
        if name in columns:
            raise ConfigError(f"the question '{name}' has two columns", field="labels", value=text)
        columns[name] = column
    return columns
