"""Batch quick start: a model over a Ray data set."""

import ray

from penstock.compat.ray import (
    OpenVINOEngineProcessorConfig as vLLMEngineProcessorConfig,
    build_processor,
)

config = vLLMEngineProcessorConfig(
    model_source="demo",
    concurrency=1,
    batch_size=64,
    should_continue_on_error=True,
)
processor = build_processor(
    config,
    preprocess=lambda row: {
        "messages": [
            {"role": "system", "content": "Sort this ticket."},
            {"role": "user", "content": row["item"]},
        ],
        "sampling_params": {"temperature": 0.0, "max_tokens": 60},
    },
    postprocess=lambda row: {
        "ticket": row["item"],
        "answer": row["generated_text"],
        "tokens": len(row["prompt_token_ids"]),
    },
)

if __name__ == "__main__":
    tickets = ["My Solara 77 is broken.", "Where is order 4711?", "Thank you, all works now."]
    dataset = processor(ray.data.from_items(tickets))
    for row in dataset.take_all():
        assert row["__inference_error__"] == ""
        print(f"{row['ticket']} ({row['tokens']} tokens): {row['answer']}")
