"""Anthropic's client for Python."""

import time
from typing import Literal

import anthropic
from driver import (
    ABOUT,
    ANSWER,
    CATEGORIES,
    MESSAGES,
    MODEL,
    PARAMETERS,
    PRIORITIES,
    TOO_LONG,
    URL,
    check,
    raises,
    routed,
    run,
    same,
)
from pydantic import BaseModel

client = anthropic.Anthropic(base_url=URL, api_key="none", max_retries=0, timeout=120)
GREEDY = {"temperature": 0}
ASK = {"model": MODEL, "max_tokens": 100, "messages": MESSAGES, "extra_body": GREEDY}
TOOL = {"name": "route", "description": ABOUT, "input_schema": PARAMETERS}


class Ticket(BaseModel):
    category: Literal[CATEGORIES]
    priority: Literal[PRIORITIES]


@check
def models():
    assert MODEL in [model.id for model in client.models.list()]
    one = client.models.retrieve(MODEL)
    assert (one.type, one.id, one.display_name) == ("model", MODEL, MODEL)
    assert len(client.models.list(limit=1).data) == 1


@check
def chat():
    answer = client.messages.create(**ASK)
    same(answer.content[0].text)
    assert answer.stop_reason in ("end_turn", "max_tokens")
    assert answer.usage.input_tokens + answer.usage.cache_read_input_tokens > 0


@check
def request_id():
    assert client.messages.create(**ASK)._request_id
    wrong = {**ASK, "model": "none-such"}
    assert raises(anthropic.NotFoundError, client.messages.create, **wrong).request_id


@check
def stream():
    with client.messages.stream(**ASK) as events:
        text = "".join(events.text_stream)
        final = events.get_final_message()
    same(text)
    assert final.content[0].text == text
    assert final.usage.output_tokens > 0


@check
async def asynchronous():
    async with (
        anthropic.AsyncAnthropic(base_url=URL, api_key="none", max_retries=0) as client,
        client.messages.stream(**ASK) as events,
    ):
        same("".join([piece async for piece in events.text_stream]))


def told(message):
    (use,) = message.content
    assert (use.type, use.name, message.stop_reason) == ("tool_use", "route", "tool_use")
    routed(use.input)
    turns = [
        *MESSAGES,
        {"role": "assistant", "content": message.content},
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": use.id, "content": "done"}],
        },
    ]
    ask = {**ASK, "messages": turns, "tools": [TOOL], "tool_choice": {"type": "none"}}
    assert client.messages.create(**ask).content[0].text


@check
def tools():
    told(client.messages.create(**ASK, tools=[TOOL], tool_choice={"type": "tool", "name": "route"}))


@check
def streamed_tools():
    choice = {"type": "any", "disable_parallel_tool_use": True}
    with client.messages.stream(**ASK, tools=[TOOL], tool_choice=choice) as events:
        kinds = {event.type for event in events}
        final = events.get_final_message()
    assert "input_json" in kinds
    told(final)


@check
def tool_runner():
    given = []

    @anthropic.beta_tool
    def route(category: Literal[CATEGORIES], priority: Literal[PRIORITIES]) -> str:
        """Send a ticket to a team."""
        given.append({"category": category, "priority": priority})
        return "done"

    choice = {"type": "any"}
    runner = client.beta.messages.tool_runner(
        **ASK, tools=[route], tool_choice=choice, max_iterations=2
    )
    assert runner.until_done().content
    for call in given:
        routed(call)
    assert given


@check
def thinking():
    """A model that cannot think answers without."""
    budget = {"type": "enabled", "budget_tokens": 1024}
    ask = {**ASK, "max_tokens": 2000, "extra_body": {}, "stop_sequences": ["."]}
    assert client.messages.create(**ask, thinking=budget).content[-1].text


@check
def much_to_say():
    """A limit beyond the context is cut to what is left of it."""
    with client.messages.stream(**{**ASK, "max_tokens": 32_000}) as events:
        assert events.get_final_message().content[0].text


@check
def structured():
    answer = client.messages.parse(**ASK, output_format=Ticket)
    assert isinstance(answer.parsed_output, Ticket)


@check
def options():
    """What people leave in their calls."""
    answer = client.messages.create(
        model=MODEL,
        max_tokens=50,
        messages=[
            {
                "role": "user",
                "content": [
                    {
                        "type": "text",
                        "text": MESSAGES[0]["content"],
                        "cache_control": {"type": "ephemeral"},
                    }
                ],
            }
        ],
        system=[{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        metadata={"user_id": "someone"},
        service_tier="auto",
        thinking={"type": "disabled"},
        stop_sequences=["never said"],
    )
    assert answer.content[0].text


@check
def prefill():
    turns = [*MESSAGES, {"role": "assistant", "content": '{"category":"billing","priority":"'}]
    answer = client.messages.create(**{**ASK, "messages": turns})
    text = answer.content[0].text
    assert not text.startswith("{")
    if ANSWER:
        assert text.startswith('low"'), text


@check
def count_tokens():
    counted = client.messages.count_tokens(model=MODEL, messages=MESSAGES)
    usage = client.messages.create(**ASK).usage
    assert counted.input_tokens == usage.input_tokens + usage.cache_read_input_tokens


def params(**more):
    """A request of a batch, with what a call puts in `extra_body`."""
    ask = {name: value for name, value in ASK.items() if name != "extra_body"}
    return {**ask, **GREEDY, **more}


def ended(batch):
    while batch.processing_status != "ended":
        time.sleep(0.05)
        batch = client.messages.batches.retrieve(batch.id)
    return batch


@check
def batches():
    requests = [
        {"custom_id": "good", "params": params()},
        {"custom_id": "bad", "params": params(temperature=7)},
    ]
    batch = ended(client.messages.batches.create(requests=requests))
    counts = batch.request_counts
    assert (counts.succeeded, counts.errored, counts.processing) == (1, 1, 0)
    found = {one.custom_id: one.result for one in client.messages.batches.results(batch.id)}
    same(found["good"].message.content[0].text)
    assert found["bad"].error.error.type == "invalid_request_error"
    assert batch.id in [one.id for one in client.messages.batches.list(limit=1)]
    assert client.messages.batches.delete(batch.id).type == "message_batch_deleted"
    raises(anthropic.NotFoundError, client.messages.batches.retrieve, batch.id)


@check
def cancelled_batch():
    requests = [
        {"custom_id": str(number), "params": params(temperature=1)} for number in range(2000)
    ]
    batch = client.messages.batches.create(requests=requests)
    assert client.messages.batches.cancel(batch.id).processing_status == "canceling"
    assert ended(batch).request_counts.canceled > 0
    kinds = {one.result.type for one in client.messages.batches.results(batch.id)}
    assert kinds <= {"canceled", "succeeded"}


@check
def unknown_path():
    error = raises(anthropic.NotFoundError, lambda: client.get("/v1/skills", cast_to=object))
    assert error.body["type"] == "error"
    assert error.body["error"]["type"] == "not_found_error"


@check
def wrong_model():
    error = raises(anthropic.NotFoundError, client.messages.create, **{**ASK, "model": "none-such"})
    assert error.body["error"]["type"] == "not_found_error"


@check
def wrong_parameter():
    wrong = {**ASK, "extra_body": {"temperature": 7}}
    error = raises(anthropic.BadRequestError, client.messages.create, **wrong)
    assert error.body["error"]["type"] == "invalid_request_error"
    assert "temperature" in error.message


@check
def long_prompt():
    messages = [{"role": "user", "content": TOO_LONG}]
    error = raises(
        anthropic.BadRequestError, client.messages.create, **{**ASK, "messages": messages}
    )
    assert error.body["error"]["type"] == "invalid_request_error"
    assert "prompt is too long" in error.message or "maximum context length" in error.message


run()
