"""The two sides of `batch_openvino.py`, one a process: `bare` or `penstock`, MODEL, ROWS, TOKENS.
Prints tokens and seconds as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

from batch_rows import texts, timed_job

MAX_NUM_SEQS = 128
MAX_NUM_BATCHED_TOKENS = 512


def bare(model: str, rows: int, tokens: int) -> tuple[int, float]:
    """OpenVINO GenAI alone: add everything, step, read."""
    import numpy as np
    import openvino as ov
    import openvino_genai as genai

    if model == "demo":
        from penstock.demo import model_path

        model = str(model_path("openvino"))
    scheduler = genai.SchedulerConfig()
    scheduler.max_num_seqs = MAX_NUM_SEQS
    scheduler.max_num_batched_tokens = MAX_NUM_BATCHED_TOKENS
    scheduler.cache_size = 1
    scheduler.enable_prefix_caching = True
    pipeline = genai.ContinuousBatchingPipeline(model, scheduler, "CPU")
    tokenizer = pipeline.get_tokenizer()
    rows_of_text = texts(rows)
    start = time.perf_counter()
    prompts = [
        tokenizer.apply_chat_template([{"role": "user", "content": text}], True)
        for text in rows_of_text
    ]
    encoded = tokenizer.encode(prompts, add_special_tokens=False)
    handles = []
    for number, (ids, mask) in enumerate(
        zip(encoded.input_ids.data, encoded.attention_mask.data, strict=True)
    ):
        config = genai.GenerationConfig(
            max_new_tokens=tokens, ignore_eos=True, apply_chat_template=False
        )
        prompt = ov.Tensor(np.ascontiguousarray(ids[mask.astype(bool)][None]).astype(np.int64))
        handles.append(pipeline.add_request(number, prompt, config))
    answers: list[list[int]] = [[] for _ in handles]
    running = dict(enumerate(handles))
    while pipeline.has_non_finished_requests():
        pipeline.step()
        for number, handle in list(running.items()):
            if handle.can_read():
                for output in handle.read().values():
                    answers[number] += output.generated_ids
            if handle.get_status() != genai.GenerationStatus.RUNNING and not handle.can_read():
                del running[number]
    decoded = tokenizer.decode(answers)
    seconds = time.perf_counter() - start
    assert len(decoded) == rows
    return sum(map(len, answers)), seconds


def penstock(model: str, rows: int, tokens: int) -> tuple[int, float]:
    """A whole job: rows in, JSONL file with a journal out."""
    from penstock.engines.openvino import OpenVINOEngine

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
