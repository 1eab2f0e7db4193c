"""A batch job against the bare engine, each side a fresh process: `penstock bench batch`."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from penstock.engines.process import die_with_parent, modules_of_this, python
from penstock.errors import ConfigError, EngineError
from penstock.loadtest.statistics import Ratio, ratio
from penstock.loadtest.workload import (
    SHAPES,
    Prompt,
    Workload,
    body_of,
    calibration,
    tokens_of_a_word,
)

BARE, JOB = "bare loop", "penstock job"
_TEMPLATE_TOKENS = 128
"""Left free for what a chat template adds to a prompt."""


@dataclass(frozen=True)
class Findings:
    """The seconds of each side in each round, and the job's speed over the bare loop's."""

    rows: int
    tokens: int
    seconds: dict[str, list[float]]
    ratio: Ratio | None
    context_length: int
    capped: bool


def fitted(workload: Workload, context_length: int) -> Workload:
    """The workload with lengths that the model has room for."""
    most = min(workload.output_tokens or context_length, workload.max_output or context_length)
    output = min(most, context_length // 2)
    # A thirty-second is left free: words drawn at random may have more tokens than the mean word.
    room = (context_length - output - _TEMPLATE_TOKENS) * 31 // 32
    if room <= SHAPES[workload.shape].prefix_tokens:
        raise ConfigError(
            f"is too short for a workload: {context_length} tokens", field="context length"
        )
    return replace(workload, max_output=output, max_input=min(workload.max_input or room, room))


def compared(
    model: str,
    workload: Workload,
    rows: int,
    rounds: int,
    say: Callable[[str], None],
) -> Findings:
    """The two sides in turn on the same rows: greedy answers of full length."""
    from penstock.engines.openvino.model.source import find_model

    files = find_model(model, None, None)
    if files.task != "generate":
        raise ConfigError("does not generate text", field="MODEL", value=model)
    path = str(files.path)
    with tempfile.TemporaryDirectory() as folder:
        whole = workload
        if whole.tokens_per_word is None:
            counts = _child("lengths", path, folder, calibration())
            whole = replace(whole, tokens_per_word=tokens_of_a_word(*counts))
        fit = fitted(whole, files.context_length)
        prompts = fit.prompts(rows)
        tokens = sum(prompt.output_tokens for prompt in prompts)
        seconds: dict[str, list[float]] = {BARE: [], JOB: []}
        for number in range(1, rounds + 1):
            for name, kind in ((BARE, "bare"), (JOB, "job")):
                say(f"round {number} of {rounds}: {name}")
                made, took = _child(kind, path, folder, prompts)
                # Equal rows are answered once by the job.
                if made > tokens or (made < tokens and workload.shape != "duplicates"):
                    raise EngineError(f"the {name} made {made} of {tokens} tokens")
                seconds[name].append(took)
    return Findings(
        rows,
        tokens,
        seconds,
        ratio(seconds[JOB], seconds[BARE]),  # speeds: the inverse of the times
        files.context_length,
        capped=prompts != whole.prompts(rows),
    )


def _child(kind: str, path: str, folder: str, prompts: Sequence[Prompt]) -> Any:
    place = Path(folder, "prompts.json")
    place.write_bytes(msgspec.json.encode(prompts))
    done = subprocess.run(
        python("-m", "penstock.loadtest.jobs", kind, path, str(place)),
        capture_output=True,
        env=modules_of_this(),
        cwd=folder,
        preexec_fn=partial(die_with_parent, os.getpid()),
    )
    if done.returncode:
        words = done.stderr.decode(errors="replace").strip().splitlines() or ["no word"]
        raise EngineError(f"the {kind} side ended with {done.returncode}: {words[-1][:500]}")
    return msgspec.json.decode(done.stdout.splitlines()[-1])


async def _job(path: str, prompts: Sequence[Prompt]) -> tuple[int, float]:
    """A whole job on a running engine: rows in OpenAI's batch form in, file and journal out."""
    from penstock import arun
    from penstock.engines.openvino.engine import OpenVINOEngine
    from penstock.loadtest.bare_loop import MAX_NUM_BATCHED_TOKENS, MAX_NUM_SEQS

    options = {"max_num_seqs": MAX_NUM_SEQS, "max_num_batched_tokens": MAX_NUM_BATCHED_TOKENS}
    engine = OpenVINOEngine(path, engine_kwargs=options)
    await engine.start()
    lines = [
        {
            "custom_id": str(number),
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": body_of(prompt, "m", stream=False, ignore_eos=True),
        }
        for number, prompt in enumerate(prompts)
    ]
    start = time.perf_counter()
    result = await arun(lines, f"out-{time.time_ns()}.jsonl", engine=engine, progress=False)
    seconds = time.perf_counter() - start
    await engine.stop()
    if result.counts.errors:
        raise EngineError(f"rows failed: {result.counts.errors}")
    return result.counts.completion_tokens, seconds


def _side(kind: str, path: str, prompts: Sequence[Prompt]) -> Any:
    if kind == "job":
        return asyncio.run(_job(path, prompts))
    import penstock.engines.openvino  # noqa: F401 - first: it keeps OpenVINO from reporting
    from penstock.loadtest import bare_loop

    if kind == "lengths":
        return bare_loop.lengths(path, [prompt.text for prompt in prompts])
    return bare_loop.generate(path, [(prompt.text, prompt.output_tokens) for prompt in prompts])


if __name__ == "__main__":
    given = msgspec.json.decode(Path(sys.argv[3]).read_bytes(), type=list[Prompt])
    print(msgspec.json.encode(_side(sys.argv[1], sys.argv[2], given)).decode())
