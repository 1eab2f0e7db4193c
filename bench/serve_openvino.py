"""What serving costs one stream: `penstock serve` over a bare loop of OpenVINO GenAI.

The bare loop renders the chat template, adds a request, steps and reads; it writes to nobody. Both
are processes of their own that stay, and one is idle while the other is measured. Each measurement
asks prompts of its own, since both keep a cache of prefixes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from statistics import median
from typing import Any

import harness
from harness import Bar, Contestant

BARE, OURS = "bare", "penstock serve"


def bare(model: str) -> None:
    """Answer lines of [text, new tokens] pairs with the seconds of them all, and of each until its
    first token.
    """
    import openvino_genai as genai

    from penstock.loadtest.bare_loop import scheduler

    pipeline = genai.ContinuousBatchingPipeline(model, scheduler(), "CPU")
    tokenizer = pipeline.get_tokenizer()
    print("ready", flush=True)
    for line in sys.stdin:
        first: list[float] = []
        start = time.perf_counter()
        for number, (text, tokens) in enumerate(json.loads(line)):
            asked = time.perf_counter()
            chat = tokenizer.apply_chat_template([{"role": "user", "content": text}], True)
            prompt = tokenizer.encode(chat, add_special_tokens=False).input_ids
            config = genai.GenerationConfig(max_new_tokens=tokens, ignore_eos=True)
            handle = pipeline.add_request(number, prompt, config)
            made: list[int] = []
            while pipeline.has_non_finished_requests():
                pipeline.step()
                if not made:
                    first.append(time.perf_counter() - asked)
                while handle.can_read():
                    for output in handle.read().values():
                        made += output.generated_ids
            assert len(made) == tokens
            tokenizer.decode(made)
        print(json.dumps({"seconds": time.perf_counter() - start, "first": first}), flush=True)


@contextlib.contextmanager
def bare_process(model: str) -> Iterator[Callable[[list[Any]], dict[str, Any]]]:
    """Gives a function that has the bare loop answer pairs of a text and new tokens."""
    with subprocess.Popen(
        [sys.executable, __file__, "side", model],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        reads, writes = process.stdout, process.stdin
        assert reads is not None
        assert writes is not None
        try:
            while reads.readline() != "ready\n":
                if process.poll() is not None:
                    raise RuntimeError(f"the bare loop ended with {process.returncode}")

            def answers(pairs: list[Any]) -> dict[str, Any]:
                writes.write(json.dumps(pairs) + "\n")
                writes.flush()
                found: dict[str, Any] = json.loads(reads.readline())
                return found

            yield answers
        finally:
            process.terminate()


def main() -> int:
    """Measure, print, and return the exit code."""
    from penstock.engines.openvino.model.source import find_model
    from penstock.loadtest.client import Server
    from penstock.loadtest.statistics import ttft
    from penstock.loadtest.study import Load, Plan, run_once, side
    from penstock.loadtest.target import address_of
    from penstock.loadtest.workload import Workload

    options = harness.parser(__doc__, rounds=5)
    options.add_argument("model", help="a GGUF file, a directory in OpenVINO's form, or demo")
    options.add_argument(
        "--requests", type=int, default=10, help="of a measurement (default: %(default)s)"
    )
    options.add_argument(
        "--tokens", type=int, default=64, help="of an answer (default: %(default)s)"
    )
    args = options.parse_args()
    workload = Workload("gsm8k", input_tokens=64, output_tokens=args.tokens)
    plan = Plan(workload, Load(clients=1), args.requests, warmup=1, more={"ignore_eos": True})
    parts = count()

    def of_bare(figure: str) -> float:
        prompts = workload.prompts(args.requests, part=str(next(parts)))
        found = answers([(prompt.text, args.tokens) for prompt in prompts])
        if figure == "tokens/s":
            return float(args.requests * args.tokens / found["seconds"])
        return float(median(found["first"])) * 1e3

    def of_ours(figure: str) -> float:
        one = side(OURS, Server(url), plan, None)
        run = asyncio.run(run_once(one, plan, workload, part=str(next(parts))))
        failed = [sample.why for sample in run.samples if sample.error]
        if failed or any(sample.output_tokens != args.tokens for sample in run.samples):
            raise RuntimeError(f"answers are not of {args.tokens} tokens: {failed}")
        if figure == "tokens/s":
            return float(args.requests * args.tokens / run.seconds)
        return float(median(map(ttft, run.samples)))

    with (
        bare_process(str(find_model(args.model, None, None).path)) as answers,
        address_of(args.model) as url,
    ):
        compared = {
            unit: harness.compare(
                title,
                unit,
                [
                    Contestant(BARE, partial(of_bare, unit)),
                    Contestant(OURS, partial(of_ours, unit)),
                ],
                args.rounds,
            )
            for title, unit in (("one stream", "tokens/s"), ("time to first token", "ms"))
        }
    speed = compared["tokens/s"].ratio(OURS, BARE).median
    first = compared["ms"].ratio(OURS, BARE).median
    bars = [
        Bar("one stream, tokens/s over the bare loop's", speed, 0.95, at_least=True),
        Bar("one stream, time to first token over the bare loop's", first, 1.1),
    ]
    return harness.finish(args, list(compared.values()), bars, packages=["openvino-genai"])


if __name__ == "__main__":
    if sys.argv[1:2] == ["side"]:
        bare(sys.argv[2])
        sys.exit(0)
    sys.exit(main())
