"""smolagents: its model for OpenAI, and agents on it."""

import json
from typing import Literal

from driver import (
    CATEGORIES,
    MESSAGES,
    MODEL,
    PARAMETERS,
    PRIORITIES,
    TOO_LONG,
    V1,
    check,
    raises,
    routed,
    run,
    same,
)
from openai import BadRequestError, NotFoundError
from smolagents import OpenAIModel, ToolCallingAgent, tool
from smolagents.models import agglomerate_stream_deltas


def chatting(model=MODEL, **more):
    return OpenAIModel(
        model,
        api_base=V1,
        api_key="none",
        client_kwargs={"max_retries": 0, "timeout": 120},
        temperature=0,
        max_tokens=200,
        **more,
    )


@tool
def route(category: Literal[CATEGORIES], priority: Literal[PRIORITIES]) -> str:
    """Send a ticket to a team.

    Args:
        category: what it is about
        priority: how soon
    """
    return "done"


@check
def chat():
    answer = chatting().generate(MESSAGES)
    same(answer.content)
    assert answer.token_usage.output_tokens > 0


@check
def stream():
    deltas = list(chatting().generate_stream(MESSAGES))
    same("".join(delta.content or "" for delta in deltas))
    assert sum(delta.token_usage.output_tokens for delta in deltas if delta.token_usage) > 0


def told(message):
    (call,) = message.tool_calls
    assert call.function.name == "route"
    given = call.function.arguments
    routed(json.loads(given) if isinstance(given, str) else given)


@check
def tools():
    told(chatting().generate(MESSAGES, tools_to_call_from=[route]))


@check
def streamed_tools():
    deltas = list(chatting().generate_stream(MESSAGES, tools_to_call_from=[route]))
    told(agglomerate_stream_deltas(deltas))


@check
def structured():
    schema = {"type": "json_schema", "json_schema": {"name": "ticket", "schema": PARAMETERS}}
    answer = chatting().generate(MESSAGES, response_format=schema)
    assert answer.content.startswith("{")


@check
def agent():
    """It must call tools until it calls the one that ends it: with few steps, it gives up."""
    for stream in (False, True):
        clerk = ToolCallingAgent(
            [route], chatting(), max_steps=2, stream_outputs=stream, verbosity_level=0
        )
        assert clerk.run("Route the ticket.", return_full_result=True).output is not None


@check
def wrong_model():
    raises(NotFoundError, chatting("none-such").generate, MESSAGES)


@check
def wrong_parameter():
    error = raises(BadRequestError, chatting(top_p=3).generate, MESSAGES)
    assert error.param == "top_p"


@check
def long_prompt():
    error = raises(BadRequestError, chatting().generate, [{"role": "user", "content": TOO_LONG}])
    assert error.code == "context_length_exceeded"


run()
