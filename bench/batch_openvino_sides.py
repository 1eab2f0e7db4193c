"""The two sides of `batch_openvino.py`, one a process: `bare` or `penstock`, MODEL, ROWS, TOKENS.
Prints tokens and seconds as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys

from batch_rows import texts, timed_job


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


if __name__ == "__main__":
    run = {"bare": bare, "penstock": penstock}[sys.argv[1]]
    made, elapsed = run(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    print(json.dumps({"tokens": made, "seconds": elapsed}))
