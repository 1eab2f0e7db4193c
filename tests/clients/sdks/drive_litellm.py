"""LiteLLM: what it does for `openai/` and `hosted_vllm/` models, and its Anthropic face."""

import json
from typing import Literal

import litellm
from driver import (
    CATEGORIES,
    EMBEDDER,
    MESSAGES,
    MODEL,
    PRIORITIES,
    QUESTION,
    TOO_LONG,
    TOOL,
    URL,
    V1,
    check,
    raises,
    routed,
    run,
    same,
)
from pydantic import BaseModel

litellm.num_retries = 0
AT = {"api_base": V1, "api_key": "none", "timeout": 120}
ASK = {**AT, "messages": MESSAGES, "temperature": 0, "max_tokens": 100}
OPENAI = {**ASK, "model": f"openai/{MODEL}"}
VLLM = {**ASK, "model": f"hosted_vllm/{MODEL}"}
CLAUDE = {**ASK, "model": f"anthropic/{MODEL}", "api_base": URL}
FORCED = {"type": "function", "function": {"name": "route"}}


class Ticket(BaseModel):
    category: Literal[CATEGORIES]
    priority: Literal[PRIORITIES]


@check
def chat():
    for ask in (OPENAI, VLLM):
        answer = litellm.completion(**ask)
        same(answer.choices[0].message.content)
        assert answer.usage.total_tokens > answer.usage.completion_tokens > 0


@check
def stream():
    for ask in (OPENAI, VLLM):
        chunks = list(
            litellm.completion(**ask, stream=True, stream_options={"include_usage": True})
        )
        built = litellm.stream_chunk_builder(chunks, messages=MESSAGES)
        same(built.choices[0].message.content)
        assert built.usage.completion_tokens > 0


@check
async def asynchronous():
    chunks = await litellm.acompletion(**OPENAI, stream=True)
    same("".join([chunk.choices[0].delta.content or "" async for chunk in chunks]))


def told(ask, answer):
    assert answer.choices[0].finish_reason == "tool_calls"
    message = answer.choices[0].message
    (call,) = message.tool_calls
    assert call.function.name == "route"
    routed(json.loads(call.function.arguments))
    result = {"role": "tool", "tool_call_id": call.id, "content": "done"}
    turns = [*MESSAGES, message.model_dump(), result]
    again = {**ask, "messages": turns, "tools": [TOOL], "tool_choice": "none"}
    assert litellm.completion(**again).choices[0].message.content


@check
def tools():
    for ask in (OPENAI, VLLM):
        told(ask, litellm.completion(**ask, tools=[TOOL], tool_choice=FORCED))


@check
def streamed_tools():
    for ask in (OPENAI, VLLM):
        chunks = list(litellm.completion(**ask, tools=[TOOL], tool_choice=FORCED, stream=True))
        told(ask, litellm.stream_chunk_builder(chunks, messages=MESSAGES))


@check
def structured():
    for ask in (OPENAI, VLLM):
        answer = litellm.completion(**ask, response_format=Ticket)
        Ticket.model_validate_json(answer.choices[0].message.content)


@check
def anthropic_chat():
    same(litellm.completion(**CLAUDE).choices[0].message.content)
    chunks = litellm.completion(**CLAUDE, stream=True)
    same("".join(chunk.choices[0].delta.content or "" for chunk in chunks))


@check
def anthropic_tools():
    told(CLAUDE, litellm.completion(**CLAUDE, tools=[TOOL], tool_choice=FORCED))


@check
def responses():
    answer = litellm.responses(
        model=f"openai/{MODEL}", input=QUESTION, temperature=0, max_output_tokens=100, **AT
    )
    same(answer.output[0].content[0].text)


@check
def completions():
    answer = litellm.text_completion(
        model=f"text-completion-openai/{MODEL}",
        prompt="My Solara",
        max_tokens=6,
        temperature=0,
        **AT,
    )
    assert answer.choices[0].text


@check
def embeddings():
    for provider in ("openai", "hosted_vllm"):
        answer = litellm.embedding(model=f"{provider}/{EMBEDDER}", input=["red fox"], **AT)
        assert len(answer.data[0]["embedding"]) > 0


@check
def rerank():
    answer = litellm.rerank(
        model="hosted_vllm/judge",
        query="red fox",
        documents=["blue", "red"],
        api_base=URL,
        api_key="none",
    )
    assert answer.results[0]["index"] == 1


@check
def wrong_model():
    for ask in (OPENAI, VLLM, CLAUDE):
        wrong = {**ask, "model": f"{ask['model'].partition('/')[0]}/none-such"}
        raises(litellm.NotFoundError, litellm.completion, **wrong)


@check
def wrong_parameter():
    for ask in (OPENAI, VLLM, CLAUDE):
        error = raises(litellm.BadRequestError, litellm.completion, **{**ask, "temperature": 7})
        assert "temperature" in str(error)


@check
def long_prompt():
    messages = [{"role": "user", "content": TOO_LONG}]
    for ask in (OPENAI, VLLM, CLAUDE):
        raises(
            litellm.ContextWindowExceededError, litellm.completion, **{**ask, "messages": messages}
        )


run()
