"""`penstock demo`: the main job on the shipped model, from rows to a score; then the same engine
behind the API.
"""

from __future__ import annotations

import json
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import click

from penstock.cli.process import interruptible, plain_table
from penstock.demo import FIELDS, MODEL_NAME, SCHEMA, tickets_path

if TYPE_CHECKING:
    from penstock.batch.job.result import RunResult
    from penstock.engines.base import LLMEngine

_SHOWN_ROWS = 5
_SHOWN_TEXT = 44


@click.command(short_help="Run the shipped model over the shipped tickets, and serve it.")
@click.option(
    "-o",
    "--output",
    default="penstock-demo/labels.jsonl",
    show_default=True,
    help="Output file for the labels: .jsonl, .parquet or .csv. An existing file is replaced.",
)
def demo(output: str) -> None:
    """Label support tickets with the tiny model that comes with the package, and score it against
    the gold labels.

    A real job on the embedded engine; then the same engine answers through the OpenAI-compatible
    API. Offline, on the CPU, in well under a minute.
    """
    import asyncio

    with interruptible():
        asyncio.run(_demo(output))


async def _demo(output: str) -> None:
    from penstock.batch.job.job import Job
    from penstock.engines.openvino.engine import OpenVINOEngine

    with tickets_path().open(encoding="utf-8") as file:
        gold = [json.loads(line) for line in file]
    tickets = [{"id": row["id"], "ticket": row["ticket"]} for row in gold]
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    click.echo(
        f"{len(tickets)} support tickets, a language model with 0.7 million parameters, this"
        " machine's CPU."
    )
    engine = OpenVINOEngine(MODEL_NAME)
    await engine.start()
    try:
        job = Job(
            tickets,
            output,
            engine=engine,
            prompt="{ticket}",
            schema=SCHEMA,
            max_tokens=100,
            fresh=True,
        )
        _report(await job.arun(), gold)
        await _serve(engine, gold[0]["ticket"])
    finally:
        await engine.stop()
    click.echo(
        "\nNow with rows of your own, or as a server:\n  penstock run your.jsonl -o answers.jsonl"
        " --model your-model --prompt 'About {column}: …'\n  penstock serve demo"
    )


def _report(result: RunResult, gold: list[dict[str, Any]]) -> None:
    from penstock.batch.job.result import summary

    rows = list(result.rows())
    # A CSV has text only, so compare texts.
    wrong = [
        [name for name in FIELDS if str(row[name]) != wanted[name]]
        for row, wanted in zip(rows, gold, strict=True)
    ]
    table = [("TICKET", *(name.upper() for name in FIELDS), "RIGHT")]
    for row, fields in list(zip(rows, wrong, strict=True))[:_SHOWN_ROWS]:
        text = shorten(row["ticket"], _SHOWN_TEXT, placeholder=" …")
        verdict = f"no: {', '.join(fields)}" if fields else "yes"
        table.append((text, *(str(row[name]) for name in FIELDS), verdict))
    click.echo(f"\n{plain_table(table)}\n")
    right = wrong.count([])
    click.echo(
        f"Exact match with the gold labels: {right} of {len(gold)} tickets"
        f" ({right / len(gold):.1%})"
    )
    click.echo(summary(result))


async def _serve(engine: LLMEngine, ticket: str) -> None:
    """Put the running engine behind the HTTP API, and print its answer to one question."""
    import asyncio

    from penstock.llm_config import LLMConfig
    from penstock.serve.api.ingress import OpenAiIngress
    from penstock.serve.client import Client
    from penstock.serve.http_server import HttpServer, address, listen
    from penstock.serve.models.local import LocalModel

    config = LLMConfig.from_dict(
        {"model_loading_config": {"model_id": MODEL_NAME, "model_source": MODEL_NAME}}
    )
    model = LocalModel(config, engine=engine)
    listening = listen("127.0.0.1", 0)
    server = HttpServer(OpenAiIngress({MODEL_NAME: model}), listening)
    serving = asyncio.create_task(server.run([model]))
    url = address(listening)

    def ask() -> None:
        pieces = Client(url).chat(
            MODEL_NAME, [{"role": "user", "content": ticket}], temperature=0, max_tokens=100
        )
        for piece in pieces:
            click.echo(piece, nl=False)
        click.echo()

    click.echo(f"\nThe same engine, served at {url}/v1 and asked over HTTP:\n  {ticket}")
    try:
        await asyncio.to_thread(ask)
    finally:
        server.stop()
        await serving
