"""`penstock calibrate`."""

from __future__ import annotations

from typing import Any

import click

from penstock.cli.process import interruptible
from penstock.cli.run import check_place, json_object, what_is_input, what_is_loaded
from penstock.errors import ConfigError
from penstock.observability import say

_EXAMPLES = """
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
    epilog=_EXAMPLES,
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
@click.option("--picture", metavar="FILE", help="Where reliability diagrams are written, as SVG.")
@click.option(
    "--folds",
    type=click.IntRange(2),
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

    from penstock.batch.decisions.calibrate import acalibrate

    given = _by_question(labels)
    for path in (output, picture):
        check_place(path)
    kwargs = json_object(engine_kwargs, "engine_kwargs")
    with interruptible():
        fits = asyncio.run(acalibrate(source, given, engine_kwargs=kwargs, **options))
    if output is not None:
        fits.save(output)
    if picture is not None:
        fits.draw(picture)
    if as_json:
        import msgspec

        click.echo(msgspec.json.encode(fits).decode())
    else:
        click.echo(str(fits))
        for what, path in (("Calibration", output), ("Picture", picture)):
            if path is not None:
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
