"""`penstock bench`: load tests of servers and of batch jobs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from penstock.cli.options import FiniteRange, WholeRange, check_places, json_object, with_options
from penstock.cli.process import interruptible, plain_table
from penstock.errors import ConfigError
from penstock.observability import say

if TYPE_CHECKING:
    from penstock.loadtest.statistics import Targets
    from penstock.loadtest.study import Load, Plan, Run, Side
    from penstock.loadtest.workload import Workload

_SHAPES = ("conversation", "code", "gsm8k", "shared-prefix", "stragglers", "duplicates")
_LEVELS = "1,2,4,8,16,32"

_POSITIVE = FiniteRange(0, min_open=True)
_WORKLOAD = (
    click.option(
        "--workload",
        "shape",
        type=click.Choice(_SHAPES),
        default="conversation",
        show_default=True,
        help="Lengths and repetitions of prompts: those of Azure's traces, of GSM8K, …",
    ),
    click.option("--input-tokens", type=WholeRange(1), help="Length of every prompt."),
    click.option("--output-tokens", type=WholeRange(1), help="Most new tokens of each."),
    click.option("--max-input", type=WholeRange(1), help="Cap of drawn lengths of prompts."),
    click.option("--max-output", type=WholeRange(1), help="Cap of drawn lengths of answers."),
    click.option(
        "--prefixes", type=WholeRange(1), help="Shared prefixes of shared-prefix.  [default: 8]"
    ),
    click.option(
        "--tokens-per-word",
        type=_POSITIVE,
        help="Tokens of a word of a prompt.  [default: measured, or 1]",
    ),
    click.option("--seed", type=int, default=0, show_default=True, help="Equal seeds, equal work."),
)

_SERVE_EXAMPLES = """
\b
Examples:
  penstock bench serve http://127.0.0.1:8000 --clients 32 --requests 500
  penstock bench serve ./llama-ir --rate 4 --slo-ttft-ms 300 --slo-tpot-ms 50
  penstock bench serve demo --ramp 1:20 --seconds 60 --picture ramp.svg --json ramp.json
  penstock bench serve http://127.0.0.1:8000 --trace azure_code.csv --trace-speed 2
  penstock bench serve http://127.0.0.1:8000 --sweep clients --picture knee.svg
  penstock bench serve --compare http://127.0.0.1:8000 http://127.0.0.1:9000 --clients 8
  penstock bench serve null --clients 8         # the load generator's own limit
"""


@click.group(short_help="Measure a server, or a batch job.")
def bench() -> None:
    """Measure a server under load, or a batch job against the bare engine."""


def what_is_asked(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of a workload."""
    return with_options(_WORKLOAD, command)


@bench.command(epilog=_SERVE_EXAMPLES, short_help="Measure a server under load.")
@click.argument("targets", metavar="URL|MODEL...", nargs=-1, required=True)
@click.option("--clients", type=WholeRange(1), help="Closed loop: this many.  [default: 8]")
@click.option("--rate", type=_POSITIVE, help="Open loop: Poisson arrivals, requests a second.")
@click.option("--ramp", metavar="A:B", help="Open loop: from A to B requests a second.")
@click.option(
    "--trace",
    type=click.Path(dir_okay=False),
    help=(
        "Open loop: a recorded trace. CSV as Azure's, or JSON lines with timestamp, input_tokens"
        " and output_tokens."
    ),
)
@click.option("--seconds", type=_POSITIVE, help="Length of a ramp.  [default: 60]")
@click.option("--trace-speed", type=_POSITIVE, help="Replay it so many times as fast.")
@click.option("--requests", type=WholeRange(1), help="How many are counted.  [default: 100]")
@click.option(
    "--warmup", type=WholeRange(0), default=8, show_default=True, help="Requests before that."
)
@what_is_asked
@click.option("--model", help="The model that is asked.  [default: the first that the server has]")
@click.option(
    "--endpoint",
    type=click.Choice(["chat", "completions"]),
    default="chat",
    show_default=True,
    help="Which of OpenAI's endpoints.",
)
@click.option("--stream/--no-stream", default=True, show_default=True, help="Stream the answers.")
@click.option("--ignore-eos", is_flag=True, help="Answers of full length, where servers know it.")
@click.option("--schema", type=click.Path(dir_okay=False), help="A JSON Schema of the answers.")
@click.option("--body", metavar="JSON", help="More fields of each request.")
@click.option("--slo-ttft-ms", type=_POSITIVE, help="Target: time to first token.")
@click.option("--slo-tpot-ms", type=_POSITIVE, help="Target: time per output token.")
@click.option("--slo-e2e-ms", type=_POSITIVE, help="Target: end to end.")
@click.option(
    "--timeout", type=_POSITIVE, default=600.0, show_default=True, help="Seconds of a request."
)
@click.option("--api-key", envvar="PENSTOCK_API_KEY", help="Also PENSTOCK_API_KEY.")
@click.option("--engine", help="The engine of a MODEL.  [default: openvino]")
@click.option("--engine-kwargs", metavar="JSON", help="Its options, as a JSON object.")
@click.option("--compare", is_flag=True, help="Measure two targets in turn: B over A.")
@click.option("--rounds", type=WholeRange(1), help="Turns of each.  [default: 3]")
@click.option(
    "--sweep", type=click.Choice(["clients", "rate"]), help="Level after level; finds the knee."
)
@click.option("--levels", metavar="N,N,…", help=f"Those levels.  [default: {_LEVELS}]")
@click.option("--json", "as_json", metavar="FILE", help="Write the figures; '-' for stdout.")
@click.option("--picture", metavar="FILE.svg", help="Draw the latencies, or the sweep.")
def serve(targets: tuple[str, ...], **options: Any) -> None:
    """Put requests to a server and measure what a client sees. A MODEL is served for the time of
    the measurement; 'null' is a server that does nothing.

    \b
    time to first token    until the first text
    time per output token  first text to last text, over the tokens but one
    inter-token latency    between two pieces of a stream
    goodput                requests a second that keep all targets (--slo-…)

    In an open loop latencies count from when a request was due. The last line says what the load
    generator itself cost. The knee of a sweep is where throughput over latency is greatest.
    """
    import asyncio
    from contextlib import ExitStack

    from penstock.loadtest.client import Server
    from penstock.loadtest.study import side
    from penstock.loadtest.target import address_of, is_address

    mode = _mode(targets, options)
    plan, targets_of, loads = _plan(options)
    served = _serve_options(targets, options)
    check_places(json=options["as_json"], picture=options["picture"])
    key, timeout = options["api_key"], options["timeout"]
    for target in filter(is_address, targets):
        Server(target, api_key=key)  # refuses a wrong address now
    with interruptible(), ExitStack() as stack:
        sides = []
        for target in targets:
            url = stack.enter_context(address_of(target, served))
            own_key = key if is_address(target) else None
            server = Server(url, api_key=own_key, timeout_s=timeout)
            sides.append(side(target, server, plan, own_key))
        report = asyncio.run(_study(mode, sides, plan, targets_of, loads, options))
    report["figures"]["workload"] = plan.workload
    _write(report, options)


_BATCH_EXAMPLES = """
\b
Examples:
  penstock bench batch demo --rows 2000 --output-tokens 16
  penstock bench batch ./llama-ir --workload gsm8k --rows 500 --json batch.json
"""


@bench.command(epilog=_BATCH_EXAMPLES, short_help="Measure a batch job.")
@click.argument("model", metavar="MODEL", default="demo")
@click.option("--rows", type=WholeRange(1), default=256, show_default=True, help="Of the job.")
@what_is_asked
@click.option(
    "--rounds", type=WholeRange(1), default=3, show_default=True, help="Turns of each side."
)
@click.option("--json", "as_json", metavar="FILE", help="Write the figures; '-' for stdout.")
def batch(model: str, rows: int, rounds: int, as_json: str | None, **options: Any) -> None:
    """Run a job with journal and output file on the embedded engine, and the same rows in a bare
    loop of OpenVINO GenAI, in turn. Answers have full length. The clock starts when the model is
    loaded, and stops at the finished file; the bare loop's at the last text.
    """
    from penstock.loadtest.jobs import compared
    from penstock.loadtest.report import batch_table

    check_places(json=as_json)
    workload = _workload(options)
    with interruptible():
        found = compared(model, workload, rows, rounds, say)
    text = [plain_table(batch_table(found))]
    if found.capped:
        text.append(f"lengths are capped: the model has room for {found.context_length:,} tokens")
    figures = {"model": model, "workload": workload, "found": found}
    _write({"text": text, "figures": figures, "failed": False}, {"as_json": as_json})


async def _one(
    sides: list[Side], plan: Plan, targets: Targets, loads: list[Load], options: Any
) -> dict[str, Any]:
    from penstock.loadtest.report import own_cost, run_tables
    from penstock.loadtest.statistics import summary
    from penstock.loadtest.study import measured

    run = await measured(sides[0], plan)
    found = summary(run, targets)
    return {
        "text": [*map(plain_table, run_tables(found, targets)), own_cost(found)],
        "figures": {"target": sides[0].name, "load": str(plan.load), "run": found},
        "picture": _distributions(f"{sides[0].name}, {plan.load}", {"": run}),
        "failed": found.failed == found.requests,
    }


async def _two(
    sides: list[Side], plan: Plan, targets: Targets, loads: list[Load], options: Any
) -> dict[str, Any]:
    from penstock.loadtest.report import comparison_table, own_cost, ratios
    from penstock.loadtest.statistics import summary
    from penstock.loadtest.study import compared

    runs = await compared(sides, plan, options["rounds"] or 3, say)
    found = [[summary(run, targets) for run in one] for one in runs]
    names = [one.name for one in sides]
    last = {f"{letter} ": one[-1] for letter, one in zip("AB", runs, strict=True)}
    busiest = max((run for one in found for run in one), key=lambda run: run.generator_cpu)
    return {
        "text": [plain_table(comparison_table(names, found)), own_cost(busiest)],
        "figures": {
            "targets": names,
            "load": str(plan.load),
            "runs": found,
            "b_over_a": ratios(*found),
        },
        "picture": _distributions(f"A {names[0]}, B {names[1]}, {plan.load}", last),
        "failed": any(all(run.failed == run.requests for run in one) for one in found),
    }


async def _many(
    sides: list[Side], plan: Plan, targets: Targets, loads: list[Load], options: Any
) -> dict[str, Any]:
    from penstock.loadtest.picture import line_chart
    from penstock.loadtest.report import own_cost, sweep_table
    from penstock.loadtest.statistics import knee, summary
    from penstock.loadtest.study import swept

    runs = await swept(sides[0], plan, loads, say)
    levels = [(str(load), summary(run, targets)) for load, run in zip(loads, runs, strict=True)]
    points = [
        (found.output_tokens_per_s, found.e2e_ms.mean if found.e2e_ms else 0.0)
        for _, found in levels
    ]
    at = knee(points)
    busiest = max((found for _, found in levels), key=lambda found: found.generator_cpu)
    return {
        "text": [plain_table(sweep_table(levels, at)), own_cost(busiest)],
        "figures": {
            "target": sides[0].name,
            "levels": [{"load": load, "run": found} for load, found in levels],
            "knee": levels[at][0],
        },
        "picture": line_chart(
            f"{sides[0].name}: throughput and latency",
            "output tokens/s",
            "end to end, mean ms",
            {options["sweep"]: points},
            marks={f"knee: {levels[at][0]}": points[at]},
            dots=True,
        ),
        "failed": all(found.failed == found.requests for _, found in levels),
    }


async def _study(mode: str, sides: list[Side], *given: Any) -> dict[str, Any]:
    try:
        return await {"one": _one, "two": _two, "many": _many}[mode](sides, *given)
    finally:
        for one in sides:
            await one.server.close()


def _mode(targets: tuple[str, ...], options: dict[str, Any]) -> str:
    if options["compare"]:
        if len(targets) != 2:
            raise ConfigError(f"needs two targets, not {len(targets)}", field="--compare")
        if options["sweep"]:
            raise ConfigError("does not stand beside --compare", field="--sweep")
        return "two"
    if len(targets) > 1:
        raise ConfigError("two targets need --compare", field="URL|MODEL")
    if options["rounds"] is not None:
        raise ConfigError("needs --compare", field="--rounds")
    if options["levels"] is not None and not options["sweep"]:
        raise ConfigError("needs --sweep", field="--levels")
    return "many" if options["sweep"] else "one"


def _plan(options: dict[str, Any]) -> tuple[Plan, Targets, list[Load]]:
    from penstock.loadtest.statistics import Targets
    from penstock.loadtest.study import Load, Plan

    for name, needs in (("seconds", "ramp"), ("trace_speed", "trace")):
        if options[name] is not None and options[needs] is None:
            raise ConfigError(f"needs --{needs}", field=f"--{name.replace('_', '-')}")
    more = json_object(options["body"], "--body") or {}
    own: dict[str, Any] = {"ignore_eos": True} if options["ignore_eos"] else {}
    if options["schema"] is not None:
        own["response_format"] = _schema(options["schema"])
    for name in (*own, "stream", "stream_options", "messages", "prompt", "model", "n"):
        if name in more:
            raise ConfigError("is set by the measurement", field=f"--body {name}")
    more |= own
    loads: list[Load] = []
    if options["sweep"]:
        for name in ("clients", "rate", "ramp", "trace"):
            if options[name] is not None:
                raise ConfigError("give the levels with --levels", field=f"--{name}")
        loads = [Load(**{options["sweep"]: level}) for level in _levels(options)]
    load = loads[0] if loads else _load(options)
    plan = Plan(
        _workload(options),
        load,
        requests=options["requests"] or 100,
        warmup=options["warmup"],
        model=options["model"],
        chat=options["endpoint"] == "chat",
        stream=options["stream"],
        more=more,
    )
    targets = Targets(options["slo_ttft_ms"], options["slo_tpot_ms"], options["slo_e2e_ms"])
    if not plan.stream and (targets.ttft_ms or targets.tpot_ms):
        raise ConfigError("only --slo-e2e-ms is known without streaming", field="--no-stream")
    return plan, targets, loads


def _load(options: dict[str, Any]) -> Load:
    from penstock.loadtest.study import Load
    from penstock.loadtest.workload import read_trace

    given = [name for name in ("clients", "rate", "ramp", "trace") if options[name] is not None]
    if len(given) > 1:
        raise ConfigError(f"does not stand beside --{given[0]}", field=f"--{given[1]}")
    kind = given[0] if given else "clients"
    if kind == "ramp":
        if options["requests"] is not None:
            raise ConfigError("a ramp has its rates and --seconds", field="--requests")
        first, last = _rates(options["ramp"])
        return Load(ramp=(first, last, options["seconds"] or 60.0))
    if kind == "trace":
        for name in ("input_tokens", "output_tokens"):
            if options[name] is not None:
                raise ConfigError("the trace has lengths", field=f"--{name.replace('_', '-')}")
        path, speed = Path(options["trace"]), options["trace_speed"] or 1.0
        return Load(trace=read_trace(path, speed=speed, limit=options["requests"]))
    return Load(rate=options["rate"]) if kind == "rate" else Load(clients=options["clients"] or 8)


def _workload(options: dict[str, Any]) -> Workload:
    from penstock.loadtest.workload import Workload

    names = (
        *("shape", "seed", "input_tokens", "output_tokens", "max_input", "max_output"),
        *("prefixes", "tokens_per_word"),
    )
    return Workload(**{name: options[name] for name in names})


def _rates(text: str) -> tuple[float, float]:
    try:
        first, last = (float(part) for part in text.split(":"))
    except ValueError:
        first = last = -1.0
    if not (0 <= first < 1e6 and 0 <= last < 1e6 and first + last > 0):
        raise ConfigError(
            f"must be two rates such as 1:20, not '{text}'", field="--ramp", value=text
        )
    return first, last


def _levels(options: dict[str, Any]) -> list[Any]:
    kind: Any = int if options["sweep"] == "clients" else float
    text = options["levels"] or _LEVELS
    try:
        found = [kind(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or any(not 0 < level < 1e6 for level in found) or sorted(set(found)) != found:
        what = "growing whole numbers" if kind is int else "growing numbers"
        raise ConfigError(
            f"must be {what} such as 1,2,4, not '{text}'", field="--levels", value=text
        )
    return found


def _schema(path: str) -> dict[str, Any]:
    try:
        text = Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not text in UTF-8"
        raise ConfigError(f"{path} cannot be read: {why}", field="--schema", value=path) from None
    schema = json_object(text, "--schema")
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


def _serve_options(targets: tuple[str, ...], options: dict[str, Any]) -> list[str]:
    from penstock.loadtest.target import NULL, is_address

    given = [name for name in ("engine", "engine_kwargs") if options[name] is not None]
    json_object(options["engine_kwargs"], "--engine-kwargs")
    source = click.get_current_context().get_parameter_source("api_key")
    if source is ParameterSource.COMMANDLINE and not any(map(is_address, targets)):
        raise ConfigError("is of a server that runs: give its URL", field="--api-key")
    if given and all(is_address(target) or target == NULL for target in targets):
        raise ConfigError("needs a MODEL", field=f"--{given[0].replace('_', '-')}")
    return [part for name in given for part in (f"--{name.replace('_', '-')}", str(options[name]))]


def _distributions(title: str, runs: dict[str, Run]) -> str:
    from penstock.loadtest.picture import distribution, line_chart
    from penstock.loadtest.statistics import e2e, ttft

    lines = {}
    for name, run in runs.items():
        whole = [sample for sample in run.samples if sample.error is None]
        answered = [sample for sample in whole if sample.pieces]
        lines[f"{name}time to first token"] = distribution([ttft(one) for one in answered])
        lines[f"{name}end to end"] = distribution([e2e(one) for one in whole])
    return line_chart(title, "milliseconds", "% of requests", lines, log_x=True)


def _write(report: dict[str, Any], options: dict[str, Any]) -> None:
    import msgspec

    from penstock.batch.write.state_files import writing

    place, picture = options["as_json"], options.get("picture")
    figures = msgspec.json.format(msgspec.json.encode(report["figures"]), indent=2)
    # What can fail comes after what was measured.
    click.echo(figures if place == "-" else "\n\n".join(report["text"]))
    if place not in (None, "-"):
        with writing(place):
            Path(place).write_bytes(figures + b"\n")
    if picture is not None:
        with writing(picture):
            Path(picture).write_bytes(report["picture"].encode())
    if report["failed"]:
        raise SystemExit(1)
