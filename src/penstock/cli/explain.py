"""`penstock explain`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from penstock.cli.process import size
from penstock.observability import escaped

if TYPE_CHECKING:
    from penstock.llm_config.engine_config import Bundle
    from penstock.serve.config.explain import Explanation, ModelPlan, Runtime

_EPILOG = """\b
Examples:
  penstock explain config.yaml
  penstock explain config.yaml --runtime ray --json | jq .most
"""

_MOST_SHOWN = 32


@click.command(short_help="Say what serving a configuration would place where.", epilog=_EPILOG)
@click.argument("config", metavar="CONFIG.yaml", type=click.Path(dir_okay=False))
@click.option("--runtime", type=click.Choice(["local", "ray"]), default="local", show_default=True)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    help="Port of the ingress.",
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def explain(config: str, runtime: Runtime, port: int, as_json: bool) -> None:
    """Say what `penstock serve CONFIG.yaml` would place where: replicas, bundles, ranks, ports,
    memory, and what in the configuration looks wrong. Starts, loads and downloads nothing.
    """
    from penstock.serve.config.explain import explain as explained
    from penstock.serve.config.serving_args import load_serving_args

    found = explained(load_serving_args(config), runtime, port)
    if as_json:
        import msgspec

        click.echo(msgspec.json.encode(found).decode())
    else:
        click.echo("\n".join(map(escaped, _lines(found))))


def _lines(found: Explanation) -> list[str]:
    lines = []
    for model in found.models:
        side = "" if model.role == "both" else f" ({model.role})"
        lines += [
            f"{model.model}{side}: {model.source} on {model.engine}, by {model.server}",
            *(f"  {name:<12}{value}" for name, value in _rows(model, found.runtime)),
            *(f"  warning: {warning}" for warning in model.warnings),
            "",
        ]
    least, most = _amounts(found.least), _amounts(found.most)
    return [
        *lines,
        f"in all: {least}" if least == most else f"in all: {least}; with all replicas {most}",
    ]


def _rows(model: ModelPlan, runtime: str) -> list[tuple[str, str]]:
    sizes, memory = model.parallelism, model.memory
    fewest, most = model.min_replicas, model.max_replicas
    replicas = _range(fewest, most)
    if sizes.data > 1:
        ranks = _range(fewest * sizes.data, most * sizes.data)
        replicas += f", of {sizes.data} data-parallel ranks each: {ranks} ranks"
    shape = f"data {sizes.data} × pipeline {sizes.pipeline} × tensor {sizes.tensor}"
    each_rank = " on each rank" if sizes.data > 1 else ""
    cache = _or_unknown(memory.kv_cache, size, "what the device has left")
    if memory.kv_tokens:
        cache += f" for {memory.kv_tokens:,} tokens"
    if memory.kv_token:
        cache += f", {size(memory.kv_token)} a token"
    kept = "reserved by Ray" if runtime == "ray" else "nothing reserves it"
    rows = [
        ("engine", f"{model.engine}: {model.engine_reason}"),
        ("replicas", replicas),
        ("cores", _cores(model.cores)),
        ("workers", f"{sizes.workers} a replica: {shape}" if sizes.workers > 1 else ""),
        ("context", _or_unknown(model.context_length, lambda tokens: f"{tokens:,} tokens")),
        ("reads", " and ".join(f"{kind}s" for kind in model.inputs)),
        ("requests", _or_unknown(model.max_num_seqs, lambda n: f"{n} at once{each_rank}", "")),
        ("answers", "deterministic: of the request alone" if model.deterministic else ""),
        ("weights", f"{_or_unknown(memory.weights, size)} a replica"),
        ("KV cache", f"{cache} a replica"),
        ("KV caches", f"exchanged by the {model.connector}" if model.connector else ""),
        ("adapters", f"{model.adapters} at once" if model.adapters else ""),
        ("needs", f"{_amounts(model.needs)} a replica ({kept})"),
        *(_bundle_rows(model) if runtime == "ray" else ()),
        *(
            ("port", f"{one.what}: {'a free one' if one.port is None else one.port}")
            for one in model.ports
        ),
    ]
    return [(name, value) for name, value in rows if value]


def _cores(cores: list[list[int]]) -> str:
    parts = [" ".join(map(str, part)) for part in cores[:_MOST_SHOWN]]
    left = len(cores) - len(parts)
    return "; ".join(parts) + (f"; and {left:,} more" if left else "")


def _range(fewest: int, most: int) -> str:
    return f"{fewest:,}" if fewest == most else f"{fewest:,} to {most:,}"


def _bundle_rows(model: ModelPlan) -> list[tuple[str, str]]:
    if not model.bundles:
        return [("bundles", "none: the engine reserves for itself")]
    rows = [("bundles", f"{len(model.bundles)} a replica, {model.strategy}")]
    for number, bundle in enumerate(model.bundles):
        inside = ["the replica's process"] if number == 0 else []
        inside += [
            f"data {rank.data}, pipeline {rank.pipeline}, tensor {rank.tensor}"
            for rank in model.ranks
            if rank.bundle == number
        ]
        rows += [("", f"{number}: {_amounts(bundle)}  {'; '.join(inside)}".rstrip())]
    return rows


def _amounts(bundle: Bundle) -> str:
    shown = (
        f"{name} {size(int(amount)) if name == 'memory' else format(amount, 'g')}"
        for name, amount in bundle.items()
    )
    return ", ".join(shown) or "nothing"


def _or_unknown(value: int | None, show: Callable[[int], str], otherwise: str = "unknown") -> str:
    return otherwise if value is None else show(value)
