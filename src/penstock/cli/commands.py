"""The commands as one group. Each imports its modules when it runs, so `--help` is fast."""

from __future__ import annotations

import click

import penstock
from penstock.cli import demo, explain, plan, run, serve


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(penstock.__version__, prog_name="penstock")
def cli() -> None:
    """Run large language models over data sets and serve them, on one shared engine."""


for command in (
    run.run,
    plan.plan,
    serve.serve,
    serve.chat,
    serve.models,
    explain.explain,
    demo.demo,
):
    cli.add_command(command)
