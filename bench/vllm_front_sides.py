"""The sides of the batches in `vllm_front.py`, one a process: SIDE, ROWS, TOKENS. Prints tokens and
seconds as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batch_rows import texts, timed_job
from penstock.demo import model_path

if TYPE_CHECKING:
    from penstock.engines.vllm.engine import VLLMEngine

MODEL = str(model_path("huggingface"))
ENGINE: dict[str, Any] = {
    "dtype": "float32",
    "enforce_eager": True,
    "kv_cache_memory_bytes": 512 << 20,
    "block_size": 32,
    "max_num_seqs": 256,
}


def flags() -> list[str]:
    """The engine's arguments as vLLM's commands take them."""
    given = {name.replace("_", "-"): value for name, value in ENGINE.items()}
    return [f"--{name}" if value is True else f"--{name}={value}" for name, value in given.items()]


def generate(rows: int, tokens: int) -> tuple[int, float]:
    """vLLM alone: `LLM.chat`, which is `LLM.generate` after the chat template."""
    from vllm import LLM, SamplingParams

    llm = LLM(model=MODEL, **ENGINE)
    conversations: Any = [[{"role": "user", "content": text}] for text in texts(rows)]
    params = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)
    llm.chat(conversations[:8], params, use_tqdm=False)
    llm.reset_prefix_cache()
    start = time.perf_counter()
    outputs = llm.chat(conversations, params, use_tqdm=False)
    seconds = time.perf_counter() - start
    return sum(len(output.outputs[0].token_ids) for output in outputs), seconds


def run_batch(rows: int, tokens: int) -> tuple[int, float]:
    """vLLM's `run-batch` as its command runs it: file of requests in, file of answers out."""
    from vllm.entrypoints.launchers import run_batch as theirs
    from vllm.entrypoints.launchers.api_server.entry import build_async_engine_client
    from vllm.usage.usage_lib import UsageContext
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    def arguments(rows: int) -> Any:
        argv = ["-i", requests(rows, tokens), "-o", f"answers-{rows}.jsonl", "--model", MODEL]
        parser = theirs.make_arg_parser(FlexibleArgumentParser())
        return parser.parse_args([*argv, "--served-model-name", "m", *flags()])

    async def job() -> float:
        few, all_of_them = arguments(8), arguments(rows)
        context = UsageContext.OPENAI_BATCH_RUNNER
        async with build_async_engine_client(few, usage_context=context) as client:
            await theirs.run_batch(client, few)
            await client.reset_prefix_cache()
            start = time.perf_counter()
            await theirs.run_batch(client, all_of_them)
            return time.perf_counter() - start

    seconds = asyncio.run(job())
    answers = Path(f"answers-{rows}.jsonl").read_text(encoding="utf-8").splitlines()
    usages = [json.loads(answer)["response"]["body"]["usage"] for answer in answers]
    return sum(usage["completion_tokens"] for usage in usages), seconds


def requests(rows: int, tokens: int) -> str:
    """A file in OpenAI's batch form; gives its name."""
    sampling = {"max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    with Path(f"requests-{rows}.jsonl").open("w", encoding="utf-8") as file:
        for number, text in enumerate(texts(rows)):
            messages = [{"role": "user", "content": text}]
            body = {"model": "m", "messages": messages, **sampling}
            line = {"custom_id": str(number), "method": "POST", "url": "/v1/chat/completions"}
            file.write(json.dumps({**line, "body": body}) + "\n")
    return file.name


async def _warm() -> VLLMEngine:
    from penstock.engines.vllm.engine import VLLMEngine
    from penstock.testing import answer, chat_request

    engine = VLLMEngine(MODEL, engine_kwargs=ENGINE)
    await engine.start()
    await asyncio.gather(*(answer(engine, chat_request(text)) for text in texts(8)))
    await engine.reset_prefix_cache()
    return engine


def penstock(rows: int, tokens: int) -> tuple[int, float]:
    """A whole job: rows in, JSONL file with a journal out."""

    async def job() -> tuple[int, float]:
        engine = await _warm()
        result = await timed_job(engine, rows, tokens)
        await engine.stop()
        return result

    return asyncio.run(job())


def penstock_run_batch(rows: int, tokens: int) -> tuple[int, float]:
    """A job over the same file of requests as `run_batch`'s."""

    async def job() -> tuple[int, float]:
        from penstock import arun

        given = requests(rows, tokens)
        engine = await _warm()
        start = time.perf_counter()
        out = f"ours-{time.time_ns()}.jsonl"
        result = await arun(given, out, engine=engine, progress=False)
        seconds = time.perf_counter() - start
        await engine.stop()
        return result.counts.completion_tokens, seconds

    return asyncio.run(job())


SIDES = {
    "LLM.generate": generate,
    "penstock": penstock,
    "vllm run-batch": run_batch,
    "penstock run": penstock_run_batch,
}

if __name__ == "__main__":
    made, elapsed = SIDES[sys.argv[1]](int(sys.argv[2]), int(sys.argv[3]))
    print(json.dumps({"tokens": made, "seconds": elapsed}))
