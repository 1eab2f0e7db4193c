"""How many lines of a batch are under way at once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from msgspec.structs import replace

from penstock.batch.rows.openai_lines import OpenAILines
from penstock.batch.rows.row import Row
from penstock.errors import ContextLengthError, RequestError
from penstock.serve.config.settings import HttpSettings, Limits
from penstock.serve.models.handle import ModelHandle, ModelNames
from penstock.serve.models.local import build_local_handles
from penstock.service.lines import UNLOADED_IN_FLIGHT, ServedStep, limited
from penstock.types import ChatRequest, ChoiceQuestion, DecideRequest, EmbeddingRequest, Option
from replica_cluster import Make, config

MOST = 500


async def lines_at_once(model: ModelHandle) -> int:
    form: Any = None  # which only answers need
    names = ModelNames({"m": model})
    step = ServedStep(form, names, "m", asyncio.Semaphore(MOST), MOST, lambda *_: None)
    async with step.running() as at_once:
        return at_once


def replicas(count: int, slots: int) -> Any:
    deployment = {"num_replicas": count}
    return config(engine_kwargs={"max_num_seqs": slots}, deployment_config=deployment)


@pytest.mark.parametrize("count", [1, 3])
async def test_there_are_enough_for_all_replicas(count: int, cluster: Make) -> None:
    local = build_local_handles([replicas(count, 8)])["m"]
    far = (await cluster(0, replicas(count, 8))).model
    try:
        assert await lines_at_once(local) == 10 * count
        assert await lines_at_once(far) == UNLOADED_IN_FLIGHT * count
    finally:
        await local.stop(0.0)


async def test_a_replica_has_told_how_many_it_takes(cluster: Make) -> None:
    one = await cluster(1, replicas(2, 8))
    assert await lines_at_once(one.model) == 20


async def test_there_are_no_more_than_the_server_has_at_once(cluster: Make) -> None:
    assert await lines_at_once((await cluster(0, replicas(50, 8))).model) == MOST


def test_a_decision_in_a_line_has_the_bound_of_its_route():
    options = tuple(Option(f"o{number}", "d" * 40) for number in range(10))
    question = ChoiceQuestion("Which?", options, several=True)
    limit = limited(HttpSettings(limits=Limits(max_prompt_chars=550)))
    long = replace(question, instructions="Which? " * 3)  # which is read once for each option
    turns: Any = [{"role": "user", "content": "text"}]
    for asked in ("text", turns):
        assert limit(DecideRequest(asked, (question,)), 1).questions
        with pytest.raises(ContextLengthError):
            limit(DecideRequest(asked, (long,)), 1)


def test_a_line_has_no_template_of_its_own_unless_its_route_takes_one():
    question = ChoiceQuestion("Which?", (Option("a"), Option("b")))
    turns: Any = [{"role": "user", "content": "text"}]
    chat = ChatRequest(turns, chat_template="{{ messages }}")
    decision = DecideRequest(turns, (question,), chat_template="{{ messages }}")
    for request in (chat, EmbeddingRequest([chat]), decision):
        with pytest.raises(RequestError) as caught:
            limited(HttpSettings())(request, 1)
        assert caught.value.param == "chat_template"
        assert limited(HttpSettings(trust_request_chat_template=True))(request, 1)


def test_the_prompts_of_a_line_have_the_bound_of_their_route():
    limit = limited(HttpSettings(limits=Limits(max_choices=3)))
    lines = OpenAILines(model="m", created=0, limit=limit)

    def line(prompts: int) -> Row:
        body = {"model": "m", "prompt": ["x"] * prompts}
        line = {"custom_id": str(prompts), "method": "POST", "url": "/v1/completions", "body": body}
        return Row(prompts, line)

    lines.prepare(line(3))
    with pytest.raises(RequestError, match="at most 3 answers"):
        lines.prepare(line(4))
