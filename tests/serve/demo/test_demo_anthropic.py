"""Anthropic's own client against the demo model on the embedded engine."""

import json

import pytest

from penstock import demo

anthropic = pytest.importorskip("anthropic")


@pytest.fixture
def client(server):
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as made:
        yield made


def asking(ticket, model="demo", **more):
    messages = [{"role": "user", "content": ticket["ticket"]}]
    return {
        "model": model,
        "max_tokens": 100,
        "messages": messages,
        "extra_body": {"temperature": 0},
        **more,
    }


def prompt_tokens(usage):
    return usage.input_tokens + usage.cache_read_input_tokens


@pytest.mark.parametrize("model", ["demo", "demo:german"])
def test_messages(client, tickets, model):
    whole = client.messages.create(**asking(tickets[0], model))
    assert whole.content[0].text == demo.expected(tickets[0], model.partition(":")[2] or None)
    assert whole.stop_reason == "end_turn"
    with client.messages.stream(**asking(tickets[0], model)) as stream:
        events = list(stream)
        final = stream.get_final_message()
    assert final.content[0].text == whole.content[0].text
    assert final.usage.output_tokens == whole.usage.output_tokens
    assert prompt_tokens(events[0].message.usage) == prompt_tokens(whole.usage) > 0


async def test_the_async_client(server, tickets):
    async with (
        anthropic.AsyncAnthropic(base_url=server.url, api_key="none", max_retries=0) as client,
        client.messages.stream(**asking(tickets[1], "demo:summary")) as stream,
    ):
        text = "".join([piece async for piece in stream.text_stream])
    assert text == demo.expected(tickets[1], "summary")


@pytest.mark.parametrize("stream", [False, True])
def test_the_stop_sequence_is_named(client, tickets, stream):
    ask = asking(tickets[0], stop_sequences=["never", '"priority"'])
    if stream:
        with client.messages.stream(**ask) as events:
            message = events.get_final_message()
    else:
        message = client.messages.create(**ask)
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", '"priority"')
    assert "priority" not in message.content[0].text


def test_tools(client, tickets):
    schema = {
        "type": "object",
        "properties": {"category": {"enum": list(demo.CATEGORIES)}},
        "required": ["category"],
    }
    tools = [{"name": "route", "input_schema": {**schema, "additionalProperties": False}}]
    ask = asking(tickets[0], tools=tools, tool_choice={"type": "any"})
    (call,) = client.messages.create(**ask).content
    assert call.input["category"] in demo.CATEGORIES
    with client.messages.stream(**ask) as stream:
        final = stream.get_final_message()
    assert final.stop_reason == "tool_use"
    assert json.loads(json.dumps(final.content[0].input)) == call.input


def test_errors_are_the_clients_own(client, tickets):
    with pytest.raises(anthropic.NotFoundError, match="Did you mean 'german'"):
        client.messages.create(**asking(tickets[0], "demo:germna"))
    with pytest.raises(anthropic.BadRequestError, match="context"):
        client.messages.create(**asking({"ticket": "word " * 10_000}))
