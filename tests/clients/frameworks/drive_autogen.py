"""AutoGen's client for OpenAI, and an agent on it."""

import json
from typing import Literal

from autogen_agentchat.agents import AssistantAgent
from autogen_core import CancellationToken
from autogen_core.models import (
    AssistantMessage,
    FunctionExecutionResult,
    FunctionExecutionResultMessage,
    UserMessage,
)
from autogen_core.tools import FunctionTool
from autogen_ext.models.openai import OpenAIChatCompletionClient
from driver import (
    CATEGORIES,
    MODEL,
    PRIORITIES,
    QUESTION,
    TOO_LONG,
    V1,
    check,
    routed,
    run,
    same,
)
from openai import BadRequestError, NotFoundError
from pydantic import BaseModel

INFO = {
    "vision": False,
    "function_calling": True,
    "json_output": True,
    "family": "unknown",
    "structured_output": True,
    "multiple_system_messages": True,
}
ASKED = UserMessage(content=QUESTION, source="user")


class Ticket(BaseModel):
    """What a ticket is about."""

    category: Literal[CATEGORIES]
    priority: Literal[PRIORITIES]


class Item(BaseModel):
    product: Literal["printer", "phone"]
    count: Literal[1, 2, 3]


class Order(BaseModel):
    """An order."""

    category: Literal[CATEGORIES]
    item: Item


def chatting(model=MODEL, **more):
    return OpenAIChatCompletionClient(
        model=model,
        base_url=V1,
        api_key="none",
        model_info=INFO,
        temperature=0,
        max_tokens=200,
        max_retries=0,
        timeout=120,
        **more,
    )


async def route(category: Literal[CATEGORIES], priority: Literal[PRIORITIES]) -> str:
    """Send a ticket to a team."""
    return "done"


TOOL = FunctionTool(route, "Send a ticket to a team.", strict=True)


@check
async def chat():
    result = await chatting().create([ASKED])
    same(result.content)
    assert result.usage.completion_tokens > 0


@check
async def stream():
    *pieces, last = [part async for part in chatting().create_stream([ASKED], include_usage=True)]
    same("".join(pieces))
    assert last.content == "".join(pieces)
    assert last.usage.completion_tokens > 0


async def told(result):
    (call,) = result.content
    given = json.loads(call.arguments)
    routed(given)
    done = await TOOL.run_json(given, CancellationToken())
    turns = [
        ASKED,
        AssistantMessage(content=result.content, source="clerk"),
        FunctionExecutionResultMessage(
            content=[
                FunctionExecutionResult(
                    content=done, name=call.name, call_id=call.id, is_error=False
                )
            ]
        ),
    ]
    again = await chatting().create(turns, tools=[TOOL], tool_choice="none")
    assert again.content


@check
async def tools():
    await told(await chatting().create([ASKED], tools=[TOOL], tool_choice="required"))
    await told(await chatting().create([ASKED], tools=[TOOL], tool_choice=TOOL))


@check
async def streamed_tools():
    parts = chatting().create_stream([ASKED], tools=[TOOL], tool_choice="required")
    *_, last = [part async for part in parts]
    await told(last)


@check
async def structured():
    for kind in (Ticket, Order):
        result = await chatting().create([ASKED], json_output=kind)
        kind.model_validate_json(result.content)


@check
async def agent():
    clerk = AssistantAgent("clerk", chatting(), system_message=None)
    result = await clerk.run(task=QUESTION)
    same(result.messages[-1].content)


async def refused(kind, client, text):
    try:
        result = await client.create([UserMessage(content=text, source="user")])
    except kind as error:
        return error
    raise AssertionError(f"no {kind} but {result!r}")


@check
async def wrong_model():
    await refused(NotFoundError, chatting("none-such"), QUESTION)


@check
async def wrong_parameter():
    assert (await refused(BadRequestError, chatting(top_p=3), QUESTION)).param == "top_p"


@check
async def long_prompt():
    error = await refused(BadRequestError, chatting(), TOO_LONG)
    assert error.code == "context_length_exceeded"


run()
