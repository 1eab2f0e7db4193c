"""Conversations of several turns: what a processor answered is part of the next question."""

import ray

from penstock.compat.ray import (
    OpenVINOEngineProcessorConfig as vLLMEngineProcessorConfig,
    build_processor,
)

TURNS = ["My Solara 77 is broken. Order 4711.", "Keys: category, order", "Repeat the text."]


def ask(row):
    """The conversation so far, and the next question."""
    turn = {"role": "user", "content": TURNS[row["turn"]]}
    return {
        "messages": [*row["conversation"], turn],
        "sampling_params": {"temperature": 0.0, "max_tokens": 40},
    }


def keep(row):
    """The conversation with the answer."""
    answer = {"role": "assistant", "content": row["generated_text"]}
    return {
        "id": row["id"],
        "turn": row["turn"] + 1,
        "conversation": [*row["messages"], answer],
    }


if __name__ == "__main__":
    processor = build_processor(vLLMEngineProcessorConfig(model_source="demo"), ask, keep)
    dataset = ray.data.from_items([{"id": n, "turn": 0, "conversation": []} for n in range(2)])
    for _ in TURNS:
        dataset = processor(dataset).materialize()
    for row in dataset.take_all():
        assert len(row["conversation"]) == 2 * len(TURNS)
        for message in row["conversation"]:
            print(f"{row['id']} {message['role']}: {message['content']}")
