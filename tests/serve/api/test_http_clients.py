"""The official clients of OpenAI and Anthropic, against a real server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

openai = pytest.importorskip("openai")
anthropic = pytest.importorskip("anthropic")
pydantic = pytest.importorskip("pydantic")

USER: Any = [{"role": "user", "content": "hello"}]
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}


@pytest.fixture
def client(url: str) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture
def claude(url: str) -> Iterator[Any]:
    with anthropic.Anthropic(base_url=url, api_key="none", max_retries=0) as made:
        yield made


def test_chat_streamed_and_not(client: Any) -> None:
    whole = client.chat.completions.create(model="sim", messages=USER, temperature=0)
    text = whole.choices[0].message.content
    assert text
    assert whole._request_id
    options = {"include_usage": True}
    with client.chat.completions.create(
        model="sim", messages=USER, temperature=0, stream=True, stream_options=options
    ) as stream:
        chunks = list(stream)
    assert (
        "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == text
    )
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_completions_and_models(client: Any) -> None:
    answer = client.completions.create(model="sim", prompt=["a", "b"], max_tokens=3, logprobs=1)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert len(answer.choices[0].logprobs.tokens) == 3
    assert [model.id for model in client.models.list()] == ["sim", "sim:german"]
    assert client.models.retrieve("sim:german").id == "sim:german"


def test_tools(client: Any) -> None:
    answer = client.chat.completions.create(
        model="sim", messages=USER, tools=[TOOL], tool_choice="required"
    )
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "weather"
    assert "city" in json.loads(call.function.arguments)
    with client.chat.completions.stream(
        model="sim", messages=USER, tools=[TOOL], tool_choice="required"
    ) as stream:
        final = stream.get_final_completion()
    (call,) = final.choices[0].message.tool_calls
    assert "city" in json.loads(call.function.arguments)
    assert final.choices[0].finish_reason == "tool_calls"


def test_parse(client: Any) -> None:
    class Ticket(pydantic.BaseModel):  # type: ignore[misc, name-defined]
        level: str
        count: int

    answer = client.chat.completions.parse(model="sim", messages=USER, response_format=Ticket)
    assert isinstance(answer.choices[0].message.parsed, Ticket)
    response = client.responses.parse(model="sim", input="hello", text_format=Ticket)
    assert isinstance(response.output_parsed, Ticket)


def test_embeddings_are_the_same_as_floats_and_as_base64(client: Any) -> None:
    # The client asks for base64 by itself.
    packed = client.embeddings.create(model="sim", input=["a", "b"])
    floats = client.embeddings.create(model="sim", input=["a", "b"], encoding_format="float")
    for one, other in zip(packed.data, floats.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, rel=1e-6)
    assert packed.usage.prompt_tokens == 2


def test_responses(client: Any) -> None:
    response = client.responses.create(
        model="sim", input="hello", temperature=0, instructions="Be brief."
    )
    assert response.status == "completed"
    assert len(response.output_text) == 16
    with client.responses.stream(
        model="sim", input="hello", temperature=0, instructions="Be brief."
    ) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert final.output_text == response.output_text
    assert final.usage.output_tokens == 16
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"
    cut = client.responses.create(model="sim", input="hello", max_output_tokens=3)
    assert cut.status == "incomplete"
    assert cut.incomplete_details.reason == "max_output_tokens"


def test_responses_with_tools(client: Any) -> None:
    tools: Any = [{"type": "function", **TOOL["function"]}]
    response = client.responses.create(
        model="sim", input="Weather?", tools=tools, tool_choice="required"
    )
    (call,) = response.output
    assert call.type == "function_call"
    assert "city" in json.loads(call.arguments)
    turn: Any = [
        {"role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
        call.model_dump(),
        {"type": "function_call_output", "call_id": call.call_id, "output": "rain"},
    ]
    assert client.responses.create(model="sim", input=turn, tools=tools).status == "completed"
    with client.responses.stream(
        model="sim", input="Weather?", tools=tools, tool_choice="required"
    ) as stream:
        kinds = [event.type for event in stream]
        (streamed,) = stream.get_final_response().output
    assert "response.function_call_arguments.done" in kinds
    assert "city" in json.loads(streamed.arguments)


def test_transcriptions(running: Any, served: Any, handle: Any, scripted: Any) -> None:
    url = running(lambda: served(handle("m", scripted())))
    ask: Any = {"model": "m", "file": ("a.wav", b"RIFF1234"), "language": "de"}
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        assert client.audio.transcriptions.create(**ask).text == "8 bytes in de"
        verbose = client.audio.transcriptions.create(**ask, response_format="verbose_json")
        assert (verbose.language, verbose.duration, verbose.segments[0].end) == ("de", 1.5, 1.5)
        assert client.audio.transcriptions.create(**ask, response_format="vtt").startswith("WEBVTT")


def test_errors_are_the_clients_own(client: Any) -> None:
    with pytest.raises(openai.NotFoundError, match="Did you mean 'sim'"):
        client.chat.completions.create(model="simm", messages=USER)
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="sim", messages=USER, temperature=7)
    assert caught.value.param == "temperature"


async def test_the_async_client(url: str) -> None:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
        whole = await client.chat.completions.create(model="german", messages=USER, temperature=0)
        stream = await client.chat.completions.create(
            model="german", messages=USER, temperature=0, stream=True
        )
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert text == whole.choices[0].message.content
    assert text.startswith("german: ")


def test_messages(claude: Any) -> None:
    ask: Any = {
        "model": "sim",
        "max_tokens": 50,
        "messages": USER,
        "system": "Be brief.",
        "extra_body": {"temperature": 0},
    }
    whole = claude.messages.create(**ask)
    assert whole.stop_reason == "end_turn"
    assert len(whole.content[0].text) == 16
    with claude.messages.stream(**ask) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == whole.content[0].text == final.content[0].text
    assert final.usage.output_tokens == 16
    assert claude.messages.create(**{**ask, "max_tokens": 2}).stop_reason == "max_tokens"
    stopping = {**ask, "stop_sequences": ["never said", text[5:8]]}
    stopped = claude.messages.create(**stopping)
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", text[5:8])
    with claude.messages.stream(**stopping) as stream:
        events = list(stream)
        final = stream.get_final_message()
    assert (final.stop_reason, final.stop_sequence) == ("stop_sequence", text[5:8])
    started = events[0].message.usage
    assert started.input_tokens + started.cache_read_input_tokens > 0
    assert started.input_tokens + started.cache_read_input_tokens == (
        stopped.usage.input_tokens + stopped.usage.cache_read_input_tokens
    )
    with pytest.raises(anthropic.NotFoundError, match="Did you mean 'sim'"):
        claude.messages.create(**{**ask, "model": "simm"})


def test_messages_with_tools(claude: Any) -> None:
    tools: Any = [
        {"name": "weather", "description": "d", "input_schema": TOOL["function"]["parameters"]}
    ]
    ask: Any = {
        "model": "sim",
        "max_tokens": 200,
        "messages": USER,
        "tools": tools,
        "tool_choice": {"type": "any"},
    }
    (use,) = claude.messages.create(**ask).content
    assert use.type == "tool_use"
    assert set(use.input) == {"city"}
    with claude.messages.stream(**ask) as stream:
        final = stream.get_final_message()
    assert final.stop_reason == "tool_use"
    assert set(final.content[0].input) == {"city"}
    turn: Any = [
        *USER,
        {"role": "assistant", "content": [use.model_dump()]},
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": use.id, "content": "rain"}],
        },
    ]
    assert (
        claude.messages.create(**{**ask, "messages": turn, "tool_choice": {"type": "auto"}})
        .content[0]
        .text
    )


def test_anthropics_client_gets_pages_of_models(claude: Any) -> None:
    names = ["sim", "sim:german"]
    page = claude.models.list()
    assert [one.id for one in page.data] == names
    assert (page.first_id, page.last_id, page.has_more) == (names[0], names[1], False)
    one = claude.models.retrieve("sim")
    assert one == page.data[0]
    assert (one.type, one.display_name, one.created_at.tzname()) == ("model", "sim", "UTC")
    assert [one.id for one in claude.models.list(limit=1)] == names  # page by page
    for query, shown, more in (
        ({"limit": 1}, names[:1], True),
        ({"limit": 2, "after_id": names[0]}, names[1:], False),
        ({"limit": 1, "before_id": names[1]}, names[:1], False),
        ({"after_id": names[1]}, [], False),
    ):
        page = claude.models.list(**query)
        assert ([one.id for one in page.data], page.has_more) == (shown, more)
    for name, value in (("limit", 0), ("limit", "x"), ("after_id", "none"), ("before_id", "x")):
        with pytest.raises(anthropic.BadRequestError, match=name):
            claude.models.list(**{name: value})
