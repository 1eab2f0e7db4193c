"""Memory: estimates of what a model takes, and the budget of all."""

import asyncio
import json
from typing import Any

import pytest

from penstock.llm_config import LLMConfig
from penstock.serve.models.memory import MemoryBudget, memory_estimate, model_size


async def settle():
    for _ in range(30):
        await asyncio.sleep(0)


def test_memory_is_estimated_from_what_is_said_or_from_the_files(tmp_path):
    (tmp_path / "weights.bin").write_bytes(bytes(5000))
    fields: dict[str, Any] = {
        "model_loading_config": {"model_id": "m", "model_source": str(tmp_path)},
        "engine_kwargs": {"kv_cache_memory_bytes": 1000},
    }
    assert memory_estimate(LLMConfig.from_dict(fields)) == 6000
    (tmp_path / "config.json").write_text(
        '{"num_hidden_layers": 2, "num_attention_heads": 0, "kv_lora_rank": null}'
    )
    assert memory_estimate(LLMConfig.from_dict(fields)) == 6000
    told = {"ray_actor_options": {"memory": 77}}
    assert memory_estimate(LLMConfig.from_dict({**fields, "deployment_config": told})) == 77


def test_a_path_that_is_too_long_is_of_no_files():
    fields = {"model_loading_config": {"model_id": "m", "model_source": f"/{'a' * 5000}"}}
    assert model_size(LLMConfig.from_dict(fields)).weights is None


def test_formats_of_one_model_are_counted_once(tmp_path):
    for name, size in (("1.safetensors", 300), ("2.safetensors", 200), ("pytorch_model.bin", 400)):
        (tmp_path / name).write_bytes(bytes(size))
    fields = {"model_loading_config": {"model_id": "m", "model_source": str(tmp_path)}}
    assert model_size(LLMConfig.from_dict(fields)).weights == 500


@pytest.mark.parametrize(
    ("described", "token"),
    [
        ({"hidden_size": 64}, 2 * 64 * 2 * 2),
        ({"hidden_size": 64, "kv_lora_rank": None}, 2 * 64 * 2 * 2),
        ({"kv_lora_rank": 8, "qk_rope_head_dim": None}, 8 * 2 * 2),
        *(({"hidden_size": wrong}, None) for wrong in (None, "64", 1e999)),
        ({"head_dim": "64"}, None),
        ({"num_attention_heads": 0, "hidden_size": 64}, None),
        ({}, None),
    ],
)
def test_the_cache_of_a_token_is_estimated_where_the_files_tell(tmp_path, described, token):
    given = {"num_hidden_layers": 2, "num_attention_heads": 4, **described}
    (tmp_path / "config.json").write_text(json.dumps(given))
    fields = {"model_loading_config": {"model_id": "m", "model_source": str(tmp_path)}}
    found = model_size(LLMConfig.from_dict({**fields, "llm_engine": "openvino"}))
    assert (found.token, found.heads) == (token, given["num_attention_heads"])


async def test_a_budget_promises_once():
    class Lodger:
        idle_since = None

        async def unload(self):
            raise AssertionError("it stays")

    budget, one, other = MemoryBudget(100), Lodger(), Lodger()
    await budget.acquire(one, 60)
    await budget.acquire(one, 60)
    assert budget.used == 60
    waiting = asyncio.create_task(budget.acquire(other, 60))
    await settle()
    assert not waiting.done()
    budget.release(one)
    await waiting
    assert budget.used == 60


async def test_an_unload_that_makes_room_goes_on_when_nobody_wants_the_room_any_more():
    class Leaving:
        idle_since: float | None = 0.0

        def __init__(self):
            self.may_end = asyncio.Event()

        async def unload(self):
            self.idle_since = None
            with budget.unloading():
                await self.may_end.wait()
            budget.release(self)

    budget, one = MemoryBudget(100), Leaving()
    await budget.acquire(one, 60)
    wanting = asyncio.create_task(budget.acquire(object(), 60))  # type: ignore[arg-type]
    await settle()
    wanting.cancel()
    await asyncio.wait([wanting])
    assert budget.used == 60
    one.may_end.set()
    await settle()
    assert budget.used == 0
