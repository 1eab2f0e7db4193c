"""Answers that continue the last message; thoughts, and what a response includes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from penstock.engines.templates.chat_template import ChatTemplate

MESSAGES = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "Well, "}]
TALKS = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture
async def talking(scripted: Any) -> Any:
    engine = scripted(["then", "."])
    engine.template = ChatTemplate(TALKS)
    await engine.start()
    return engine


@pytest.fixture
async def client(talking: Any, handle: Any, served: Any) -> Any:
    async with served(handle("sim", talking)).client() as made:
        yield made


def body(**more: Any) -> dict[str, Any]:
    return {"model": "sim", "messages": MESSAGES, **more}


@pytest.mark.parametrize("echo", [None, False, True])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_chat_continues_its_last_message(
    talking: Any, client: Any, events: Any, stream: bool, echo: bool | None
) -> None:
    asked = body(continue_final_message=True, add_generation_prompt=False, echo=echo)
    answer = await client.post("/v1/chat/completions", json={**asked, "stream": stream})
    assert talking.prompts == ["<user>hello<end><assistant>Well, "]
    if stream:
        chunks = [json.loads(event) for event in events(answer.text)[:-1]]
        text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    else:
        text = answer.json()["choices"][0]["message"]["content"]
    assert text == ("Well, then." if echo else "then.")


async def test_without_the_flag_a_new_message_begins(talking: Any, client: Any) -> None:
    await client.post("/v1/chat/completions", json=body())
    await client.post("/v1/chat/completions", json=body(add_generation_prompt=False))
    told = "<user>hello<end><assistant>Well, <end>"
    assert talking.prompts == [f"{told}<assistant>", told]


async def test_both_flags_are_refused_as_vllm_does(talking: Any, client: Any) -> None:
    asked = body(continue_final_message=True, add_generation_prompt=True)
    answer = await client.post("/v1/chat/completions", json=asked)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "continue_final_message"


async def test_an_echo_is_of_the_same_role_only(talking: Any, client: Any) -> None:
    for messages, text in ((MESSAGES, "Well, then."), (MESSAGES[:1], "then.")):
        asked = body(echo=True) | {"messages": messages}
        answer = await client.post("/v1/chat/completions", json=asked)
        assert answer.json()["choices"][0]["message"]["content"] == text


async def test_a_changed_text_is_refused(talking: Any, client: Any) -> None:
    talking.template = ChatTemplate(TALKS.replace("m.content", "m.content | upper"))
    asked = body(continue_final_message=True)
    answer = await client.post("/v1/chat/completions", json=asked)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "continue_final_message"


@pytest.mark.parametrize("content", ["Well, ", [{"type": "text", "text": "Well, "}]])
async def test_anthropics_last_assistant_message_is_continued(
    talking: Any, client: Any, content: Any
) -> None:
    messages = [MESSAGES[0], {"role": "assistant", "content": content}]
    asked = {"model": "sim", "max_tokens": 9, "messages": messages}
    answer = await client.post("/v1/messages", json=asked)
    assert talking.prompts == ["<user>hello<end><assistant>Well, "]
    assert answer.json()["content"] == [{"type": "text", "text": "then."}]


@pytest.mark.parametrize("status", ["incomplete", "in_progress", "completed", None])
async def test_a_response_continues_a_message_that_is_not_complete(
    talking: Any, client: Any, status: str | None
) -> None:
    begun = {"type": "message", "role": "assistant", "status": status}
    asked = {"model": "sim", "input": [MESSAGES[0], {**begun, "content": "Well, "}]}
    answer = await client.post("/v1/responses", json=asked)
    told = "<user>hello<end><assistant>Well, "
    if status in ("incomplete", "in_progress"):
        assert talking.prompts == [told]
        assert answer.json()["output"][0]["content"][0]["text"] == "then."
    else:
        assert talking.prompts == [f"{told}<end><assistant>"]


ENABLED = {"type": "enabled", "budget_tokens": 1024}


@pytest.mark.parametrize(
    ("thinking", "shown"),
    [(ENABLED, "True"), ({"type": "disabled"}, "False"), ({"type": "adaptive"}, ""), (None, "")],
)
async def test_thinking_is_a_variable_of_the_template(
    talking: Any, client: Any, thinking: Any, shown: str
) -> None:
    talking.template = ChatTemplate("{{ enable_thinking }}")
    asked = {"model": "sim", "max_tokens": 9, "messages": MESSAGES[:1], "thinking": thinking}
    answer = await client.post("/v1/messages", json=asked)
    assert (answer.status_code, talking.prompts) == (200, [shown])


async def test_an_unknown_kind_of_thinking_is_refused(client: Any) -> None:
    asked = {"model": "sim", "max_tokens": 9, "messages": MESSAGES, "thinking": {"type": "deep"}}
    answer = await client.post("/v1/messages", json=asked)
    assert answer.status_code == 400
    assert "thinking" in answer.json()["error"]["message"]


THOUGHTS = (
    "{% for m in messages %}{{ m.role }}:{{ m.reasoning_content }}:{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.name }}{% endfor %};{% endfor %}{{ tools }}"
)


async def test_thoughts_that_come_back_reach_the_template(talking: Any, client: Any) -> None:
    talking.template = ChatTemplate(THOUGHTS)
    said = [
        {"type": "thinking", "thinking": "hm", "signature": "x"},
        {"type": "tool_use", "id": "1", "name": "look", "input": {}},
    ]
    result = {"type": "tool_result", "tool_use_id": "1", "content": "done"}
    messages = [
        MESSAGES[0],
        {"role": "assistant", "content": said},
        {"role": "user", "content": [result]},
    ]
    asked: dict[str, Any] = {"model": "sim", "max_tokens": 9, "messages": messages}
    await client.post("/v1/messages", json=asked)
    call = {"type": "function_call", "call_id": "1", "name": "look", "arguments": "{}"}
    items = [
        MESSAGES[0],
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        call,
        {"type": "function_call_output", "call_id": "1", "output": "done"},
    ]
    await client.post("/v1/responses", json={"model": "sim", "input": items})
    assert talking.prompts == ["user::hello;assistant:hm:look;tool::done;None"] * 2


@pytest.mark.parametrize("stream", [False, True])
async def test_a_response_gives_log_probabilities(
    client: Any, talking: Any, stream: bool, events: Any
) -> None:
    talking.pieces = None  # the simulated engine's own answers have some
    asked = {"model": "sim", "input": "hello", "max_output_tokens": 4, "top_logprobs": 2}
    include = ["message.output_text.logprobs", "reasoning.encrypted_content"]
    answer = await client.post(
        "/v1/responses", json={**asked, "include": include, "stream": stream}
    )
    body = json.loads(events(answer.text)[-1])["response"] if stream else answer.json()
    (item,) = body["output"]
    logprobs = item["content"][0]["logprobs"]
    assert len(logprobs) == 4
    assert all(len(token["top_logprobs"]) == 2 for token in logprobs)


async def test_an_unknown_include_is_refused(client: Any) -> None:
    answer = await client.post(
        "/v1/responses", json={"model": "sim", "input": "hello", "include": ["everything"]}
    )
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "include")
