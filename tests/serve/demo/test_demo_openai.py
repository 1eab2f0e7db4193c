"""OpenAI's own client against the demo model on the embedded engine."""

import asyncio
import json
from typing import Any, Literal

import pytest

from penstock import demo

openai = pytest.importorskip("openai")
pydantic = pytest.importorskip("pydantic")

GREEDY = {"temperature": 0, "max_tokens": 100}
MODELS = {"demo": None, "demo:summary": "summary", "demo:german": "german"}
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "route",
        "description": "Send a ticket to a team.",
        "parameters": {
            "type": "object",
            "properties": {
                "category": {"enum": list(demo.CATEGORIES)},
                "priority": {"enum": list(demo.PRIORITIES)},
            },
            "required": ["category", "priority"],
            "additionalProperties": False,
        },
    },
}


class Ticket(pydantic.BaseModel):  # type: ignore[misc, name-defined]
    category: Literal[demo.CATEGORIES]  # type: ignore[valid-type]
    priority: Literal[demo.PRIORITIES]  # type: ignore[valid-type]
    product: str
    sentiment: Literal[demo.SENTIMENTS]  # type: ignore[valid-type]


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def says(ticket):
    return [{"role": "user", "content": ticket["ticket"]}]


def test_models_and_adapters_are_listed(client, engine_name):
    cards = {card.id: card.model_dump() for card in client.models.list()}
    others = {"words", "judge"} if engine_name == "openvino" else set()
    assert set(cards) == {"demo", "demo:german", "demo:summary", *others}
    assert cards["demo"]["state"] in ("loading", "ready")
    assert client.models.retrieve("demo:german").id == "demo:german"


def test_beams_are_choices_and_come_whole_in_a_stream(client, tickets, engine_name):
    search = {"n": 3, "max_tokens": 100, "extra_body": {"use_beam_search": True}}
    request = {"model": "demo", "messages": says(tickets[0]), **search}
    if engine_name != "openvino":
        with pytest.raises(openai.BadRequestError, match="takes no use_beam_search"):
            client.chat.completions.create(**request)
        return
    whole = client.chat.completions.create(**request)
    texts = [choice.message.content for choice in whole.choices]
    assert len(set(texts)) == 3
    streamed: dict[int, list[str]] = {}
    for chunk in client.chat.completions.create(**request, stream=True):
        for choice in chunk.choices:
            if choice.delta.content:
                streamed.setdefault(choice.index, []).append(choice.delta.content)
    assert [streamed[index] for index in range(3)] == [[text] for text in texts]
    with pytest.raises(openai.BadRequestError, match="does not go with temperature") as caught:
        client.chat.completions.create(**request, temperature=0.5)
    assert caught.value.param == "temperature"


@pytest.mark.parametrize(("model", "adapter"), MODELS.items())
def test_chat(client, tickets, model, adapter):
    right = 0
    for ticket in tickets:
        whole = client.chat.completions.create(model=model, messages=says(ticket), **GREEDY)
        text = whole.choices[0].message.content
        assert whole.choices[0].finish_reason == "stop"
        right += text == demo.expected(ticket, adapter)
        streamed = ""
        usage: Any = None
        with client.chat.completions.create(
            model=model,
            messages=says(ticket),
            stream=True,
            stream_options={"include_usage": True},
            **GREEDY,
        ) as stream:
            for chunk in stream:
                usage = chunk.usage or usage
                streamed += "".join(choice.delta.content or "" for choice in chunk.choices)
        assert streamed == text
        assert usage.completion_tokens == whole.usage.completion_tokens
        assert usage.prompt_tokens == whole.usage.prompt_tokens > 0
    assert right >= len(tickets) - 1


def test_an_adapter_may_be_called_by_its_name_alone(client, tickets):
    answers = {
        model: client.chat.completions.create(model=model, messages=says(tickets[0]), **GREEDY)
        for model in ("summary", "demo:summary")
    }
    assert len({answer.choices[0].message.content for answer in answers.values()}) == 1


async def test_the_async_client_at_once_with_every_adapter(server, tickets):
    async with openai.AsyncOpenAI(
        base_url=f"{server.url}/v1", api_key="none", max_retries=0
    ) as client:

        async def ask(model, ticket):
            stream = await client.chat.completions.create(
                model=model, messages=says(ticket), stream=True, **GREEDY
            )
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

        asked = [(model, ticket) for ticket in tickets for model in MODELS]
        said = await asyncio.gather(*(ask(model, ticket) for model, ticket in asked))
    right = sum(
        text == demo.expected(ticket, MODELS[model])
        for text, (model, ticket) in zip(said, asked, strict=True)
    )
    assert right >= len(asked) - 3


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "route"}}]
)
def test_tools(client, tickets, choice):
    ask = {
        "model": "demo",
        "messages": says(tickets[0]),
        "tools": [TOOL],
        "tool_choice": choice,
        **GREEDY,
    }
    whole = client.chat.completions.create(**ask)
    assert whole.choices[0].finish_reason == "tool_calls"
    (call,) = whole.choices[0].message.tool_calls
    assert json.loads(call.function.arguments)["category"] in demo.CATEGORIES
    with client.chat.completions.stream(**ask) as stream:
        final = stream.get_final_completion()
    (streamed,) = final.choices[0].message.tool_calls
    assert (streamed.function.name, streamed.function.arguments) == (
        "route",
        call.function.arguments,
    )
    turn = [
        *says(tickets[0]),
        whole.choices[0].message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "done"},
    ]
    free = client.chat.completions.create(model="demo", messages=turn, tools=[TOOL], **GREEDY)
    assert free.choices[0].finish_reason in ("stop", "length", "tool_calls")


def test_structured_output(client, tickets):
    ticket = tickets[0]
    parsed = client.chat.completions.parse(
        model="demo", messages=says(ticket), response_format=Ticket, **GREEDY
    )
    assert parsed.choices[0].message.parsed.category == ticket["category"]
    response = client.responses.parse(
        model="demo",
        input=ticket["ticket"],
        text_format=Ticket,
        temperature=0,
        max_output_tokens=100,
    )
    assert response.output_parsed == parsed.choices[0].message.parsed


def test_responses(client, tickets):
    ask = {
        "model": "demo:summary",
        "input": tickets[0]["ticket"],
        "temperature": 0,
        "max_output_tokens": 100,
    }
    whole = client.responses.create(**ask)
    assert whole.output_text == demo.expected(tickets[0], "summary")
    with client.responses.stream(**ask) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert final.output_text == whole.output_text
    assert (kinds[0], kinds[-1]) == ("response.created", "response.completed")
    cut = client.responses.create(**{**ask, "max_output_tokens": 2})
    assert cut.incomplete_details.reason == "max_output_tokens"
    tool = {"type": "function", **TOOL["function"]}
    (call,) = client.responses.create(
        **{**ask, "model": "demo"}, tools=[tool], tool_choice="required"
    ).output
    assert json.loads(call.arguments)["category"] in demo.CATEGORIES


def test_completions(client, tickets):
    ask = {"model": "demo", "prompt": "My Solara", **GREEDY, "max_tokens": 6}
    (one,) = client.completions.create(**ask).choices
    (echoed,) = client.completions.create(**ask, echo=True).choices
    assert echoed.text == "My Solara" + one.text
    (known,) = client.completions.create(**ask, logprobs=0).choices
    assert len(known.logprobs.token_logprobs) == 6
    assert all(value <= 0 for value in known.logprobs.token_logprobs)
    several = client.completions.create(**{**ask, "prompt": ["My Solara", "I want"]}).choices
    assert several[0].text == one.text
    with client.completions.create(**ask, stream=True) as stream:
        assert "".join(chunk.choices[0].text for chunk in stream) == one.text


def test_seeds_answers_and_logprobs(client, tickets):
    ask = {
        "model": "demo",
        "messages": says(tickets[0]),
        "temperature": 2,
        "max_tokens": 12,
        "n": 3,
        "seed": 5,
    }
    first, again = (
        [choice.message.content for choice in client.chat.completions.create(**ask).choices]
        for _ in range(2)
    )
    assert first == again
    assert len(set(first)) > 1
    (choice,) = client.chat.completions.create(
        model="demo", messages=says(tickets[0]), logprobs=True, **GREEDY
    ).choices
    assert "".join(token.token for token in choice.logprobs.content).startswith(
        choice.message.content[:20]
    )
    stopped = client.chat.completions.create(
        model="demo", messages=says(tickets[0]), stop=["priority"], **GREEDY
    )
    assert "priority" not in stopped.choices[0].message.content


def test_embeddings(client, engine_name):
    if engine_name != "openvino":
        pytest.skip("no such model is served")
    # As base64, the client's own way.
    packed = client.embeddings.create(model="words", input=["red fox", "blue"])
    floats = client.embeddings.create(
        model="words", input=["red fox", "blue"], encoding_format="float"
    )
    assert [item.embedding for item in packed.data] == [
        pytest.approx(item.embedding) for item in floats.data
    ]
    assert floats.data[1].embedding == pytest.approx([0, 0, 1, 0, 0, 0, 0, 0], abs=1e-6)
    with pytest.raises(openai.BadRequestError, match="16"):
        client.embeddings.create(model="words", input="red " * 50)


def test_errors_are_the_clients_own(client, tickets, engine_name):
    with pytest.raises(openai.NotFoundError, match="Did you mean 'german'"):
        client.chat.completions.create(model="demo:germna", messages=says(tickets[0]))
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model="demo", messages=[{"role": "user", "content": "word " * 10_000}]
        )
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match=engine_name) as unable:
        client.embeddings.create(model="demo", input="x")
    assert unable.value.status_code == 400
    with pytest.raises(openai.BadRequestError, match=engine_name):
        client.audio.transcriptions.create(model="demo", file=("a.wav", b"RIFF"))
