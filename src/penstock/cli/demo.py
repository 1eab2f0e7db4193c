"""`penstock demo`: the main job on the shipped model, from rows to a score."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from textwrap import shorten
from typing import Any

import click

_SHOWN_ROWS = 5
_SHOWN_TEXT = 44
_LEAST_WIDTH = 110


@click.command(short_help="Run the shipped model over the shipped tickets.")
@click.option(
    "-o",
    "--output",
    default="penstock-demo/labels.jsonl",
    show_default=True,
    help="Where the labels go: .jsonl, .parquet or .csv. Replaced if it is there.",
)
def demo(output: str) -> None:
    """Label support tickets with the tiny model that comes with the package, and score it against the gold labels.

    A real job on the embedded engine: offline, on the CPU, in well under a minute.
    """
    from penstock.batch.job import Job
    from penstock.batch.progress import summary
    from penstock.demo import FIELDS, MODEL_NAME, SCHEMA, tickets_path

    with tickets_path().open(encoding="utf-8") as file:
        gold = [json.loads(line) for line in file]
    tickets = [{"id": row["id"], "ticket": row["ticket"]} for row in gold]
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    click.echo(f"{len(tickets)} support tickets, a language model with 0.7 million parameters, this machine's CPU.")
    result = Job(tickets, output, model=MODEL_NAME, prompt="{ticket}", schema=SCHEMA, max_tokens=100, fresh=True).run()

    labelled = list(result.rows())
    right = sum(all(row[name] == wanted[name] for name in FIELDS) for row, wanted in zip(labelled, gold, strict=True))
    _show(labelled[:_SHOWN_ROWS], gold, FIELDS)
    click.echo(f"Exact match with the gold labels: {right} of {len(gold)} tickets ({right / len(gold):.1%})")
    click.echo(summary(result))
    click.echo(
        "\nNow with rows of your own:\n"
        "  penstock run your.jsonl -o answers.jsonl --model your-model --prompt 'About {column}: …'"
    )


def _show(rows: list[dict[str, Any]], gold: list[dict[str, Any]], fields: tuple[str, ...]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("ticket", *fields, "right"):
        table.add_column(name, no_wrap=True)
    for row, wanted in zip(rows, gold, strict=False):
        text = shorten(row["ticket"], _SHOWN_TEXT, placeholder=" …")
        table.add_row(text, *(str(row[name]) for name in fields), _mark(row, wanted, fields))
    # A pipe has no width, and cells of a narrow terminal had better be cut at the right than wrapped.
    Console(width=max(Console().width, _LEAST_WIDTH), soft_wrap=True).print(table)


def _mark(row: Mapping[str, Any], wanted: Mapping[str, Any], fields: tuple[str, ...]) -> str:
    wrong = [name for name in fields if row[name] != wanted[name]]
    return f"no: {', '.join(wrong)}" if wrong else "yes"
