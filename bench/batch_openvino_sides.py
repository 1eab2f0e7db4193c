"""The sides of `batch_openvino.py`, one a process: SIDE, MODEL, ROWS, TOKENS. Prints tokens and
seconds as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from batch_rows import texts, timed_job

SLOTS = 8
"""With more llama.cpp made fewer tokens a second on two cores."""


def bare(model: str, rows: int, tokens: int) -> tuple[int, float]:
    """OpenVINO GenAI alone: add everything, step, read."""
    from penstock.loadtest.bare_loop import generate

    if model == "demo":
        from penstock.demo import model_path

        model = str(model_path("openvino"))
    return generate(model, [(text, tokens) for text in texts(rows)])


def penstock(model: str, rows: int, tokens: int) -> tuple[int, float]:
    """A whole job: rows in, JSONL file with a journal out."""
    from penstock.engines.openvino.engine import OpenVINOEngine
    from penstock.loadtest.bare_loop import MAX_NUM_BATCHED_TOKENS, MAX_NUM_SEQS

    async def job() -> tuple[int, float]:
        options = {"max_num_seqs": MAX_NUM_SEQS, "max_num_batched_tokens": MAX_NUM_BATCHED_TOKENS}
        engine = OpenVINOEngine(model, engine_kwargs=options)
        await engine.start()
        result = await timed_job(engine, rows, tokens)
        await engine.stop()
        return result

    return asyncio.run(job())


def llama_cpp(model: str, rows: int, tokens: int) -> tuple[int, float]:
    """llama.cpp in this process: as many threads as it has slots, each asks again when answered."""
    import xllamacpp  # type: ignore[import-not-found]

    params: Any = xllamacpp.CommonParams()
    params.model.path = model
    params.n_parallel = SLOTS
    params.n_ctx = 1024 * SLOTS  # of all slots together
    params.cont_batching = True
    engine = xllamacpp.Server(params)

    def ask(text: str) -> int:
        messages = [{"role": "user", "content": text}]
        asked = {"messages": messages, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
        return int(engine.handle_chat_completions(asked)["usage"]["completion_tokens"])

    with ThreadPoolExecutor(SLOTS) as pool:
        list(pool.map(ask, texts(SLOTS)))
        start = time.perf_counter()
        made = sum(pool.map(ask, texts(rows)))
        return made, time.perf_counter() - start


if __name__ == "__main__":
    run = {"bare": bare, "penstock": penstock, "llama.cpp": llama_cpp}[sys.argv[1]]
    made, elapsed = run(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    print(json.dumps({"tokens": made, "seconds": elapsed}))
