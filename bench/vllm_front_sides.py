"""The two sides of the batch in `vllm_front.py`, one a process: `generate` or `penstock`, ROWS,
TOKENS. Prints tokens and seconds as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

from batch_rows import texts, timed_job
from penstock.demo import model_path

MODEL = str(model_path("huggingface"))
ENGINE: dict[str, Any] = {
    "dtype": "float32",
    "enforce_eager": True,
    "kv_cache_memory_bytes": 512 << 20,
    "block_size": 32,
    "max_num_seqs": 256,
}


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


def penstock(rows: int, tokens: int) -> tuple[int, float]:
    """A whole job: rows in, JSONL file with a journal out."""
    from penstock.engines.vllm.engine import VLLMEngine
    from penstock.testing import answer, chat_request

    async def job() -> tuple[int, float]:
        engine = VLLMEngine(MODEL, engine_kwargs=ENGINE)
        await engine.start()
        await asyncio.gather(*(answer(engine, chat_request(text)) for text in texts(8)))
        await engine.reset_prefix_cache()
        result = await timed_job(engine, rows, tokens)
        await engine.stop()
        return result

    return asyncio.run(job())


if __name__ == "__main__":
    run = {"generate": generate, "penstock": penstock}[sys.argv[1]]
    made, elapsed = run(int(sys.argv[2]), int(sys.argv[3]))
    print(json.dumps({"tokens": made, "seconds": elapsed}))
