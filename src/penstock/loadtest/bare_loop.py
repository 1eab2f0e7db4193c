"""OpenVINO GenAI alone, as anyone would write it first: add every request, step, read, decode. It
is the limit that a batch job is measured against. Only child processes import this.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import openvino as ov
import openvino_genai as genai

MAX_NUM_SEQS = 128
MAX_NUM_BATCHED_TOKENS = 512


def scheduler() -> genai.SchedulerConfig:
    """Room for many requests at once."""
    config = genai.SchedulerConfig()
    config.max_num_seqs = MAX_NUM_SEQS
    config.max_num_batched_tokens = MAX_NUM_BATCHED_TOKENS
    config.cache_size = 1
    config.enable_prefix_caching = True
    return config


def generate(model: str, prompts: Sequence[tuple[str, int]]) -> tuple[int, float]:
    """Greedy answers of full length to (text, new tokens) pairs; tokens made, and seconds from the
    first request to the last text. `model` is a directory in OpenVINO's form, or a GGUF file.
    """
    pipeline = genai.ContinuousBatchingPipeline(model, scheduler(), "CPU")
    tokenizer = pipeline.get_tokenizer()
    start = time.perf_counter()
    texts = [
        tokenizer.apply_chat_template([{"role": "user", "content": text}], True)
        for text, _ in prompts
    ]
    encoded = tokenizer.encode(texts, add_special_tokens=False)
    handles = []
    for number, (ids, mask) in enumerate(
        zip(encoded.input_ids.data, encoded.attention_mask.data, strict=True)
    ):
        config = genai.GenerationConfig(
            max_new_tokens=prompts[number][1], ignore_eos=True, apply_chat_template=False
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
    assert len(decoded) == len(prompts)
    return sum(map(len, answers)), seconds


def lengths(model: str, texts: Sequence[str]) -> list[int]:
    """How many tokens each text is, by the model's tokenizer."""
    if model.endswith(".gguf"):  # its tokenizer comes with the pipeline alone
        any_config = genai.SchedulerConfig()
        tokenizer = genai.ContinuousBatchingPipeline(model, any_config, "CPU").get_tokenizer()
    else:
        tokenizer = genai.Tokenizer(model)
    return [int(tokenizer.encode([text]).input_ids.shape[1]) for text in texts]
