"""OpenAI's Agents SDK, over chat and over responses."""

import contextlib
from typing import Literal

from agents import (
    Agent,
    MaxTurnsExceeded,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
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
from openai import AsyncOpenAI, BadRequestError, NotFoundError
from pydantic import BaseModel

set_tracing_disabled(True)
client = AsyncOpenAI(base_url=V1, api_key="none", max_retries=0, timeout=120)
CHAT = OpenAIChatCompletionsModel(MODEL, client)
RESPONSES = OpenAIResponsesModel(MODEL, client)


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


def agent(model, choice=None, **more):
    settings = ModelSettings(temperature=0, max_tokens=200, tool_choice=choice)
    return Agent(name="clerk", model=model, model_settings=settings, **more)


async def each(check_one):
    """Does it for both of the models, and says for which one it failed."""
    for model in (CHAT, RESPONSES):
        try:
            await check_one(model)
        except Exception as error:
            error.add_note(f"with {type(model).__name__}")
            raise


async def streamed(asked):
    result = Runner.run_streamed(asked, QUESTION)
    text = ""
    async for event in result.stream_events():
        if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
            text += event.data.delta
    return text, result


@check
async def chat():
    async def one(model):
        result = await Runner.run(agent(model), QUESTION)
        same(result.final_output)
        assert result.context_wrapper.usage.output_tokens > 0

    await each(one)


@check
async def stream():
    async def one(model):
        text, result = await streamed(agent(model))
        same(text)
        assert result.final_output == text

    await each(one)


def routing(given, offered=True):
    @function_tool(is_enabled=lambda context, agent: offered or not given)
    def route(category: Literal[CATEGORIES], priority: Literal[PRIORITIES]) -> str:
        """Send a ticket to a team."""
        given.append({"category": category, "priority": priority})
        return "done"

    return route


@check
async def tools():
    """A forced call, and then an answer without tools."""

    async def one(model):
        given = []
        tool = routing(given, offered=False)
        result = await Runner.run(agent(model, "required", tools=[tool]), QUESTION)
        (call,) = given
        routed(call)
        assert result.final_output

    await each(one)


@check
async def streamed_tools():
    async def one(model):
        given = []
        tool = routing(given, offered=False)
        text, _ = await streamed(agent(model, "route", tools=[tool]))
        (call,) = given
        routed(call)
        assert text

    await each(one)


@check
async def free_tools():
    """After a forced call the model may call again or not, but nothing that is not offered."""

    async def one(model):
        given = []
        with contextlib.suppress(MaxTurnsExceeded):
            asked = agent(model, "required", tools=[routing(given)])
            await Runner.run(asked, QUESTION, max_turns=3)
        for call in given:
            routed(call)

    await each(one)


@check
async def structured():
    async def one(model):
        for kind in (Ticket, Order):
            result = await Runner.run(agent(model, output_type=kind), QUESTION)
            assert isinstance(result.final_output, kind)

    await each(one)


@check
async def handoff():
    """One agent hands over to another, by a tool without parameters."""

    async def one(model):
        second = agent(model, handoff_description="Knows all.")
        second.name = "expert"
        first = agent(model, "required", handoffs=[second])
        result = await Runner.run(first, QUESTION)
        assert result.last_agent.name == "expert"
        assert result.final_output

    await each(one)


async def refused(kind, asked, question):
    try:
        result = await Runner.run(asked, question)
    except kind as error:
        return error
    raise AssertionError(f"no {kind} but {result!r}")


@check
async def wrong_model():
    for make in (OpenAIChatCompletionsModel, OpenAIResponsesModel):
        await refused(NotFoundError, agent(make("none-such", client)), QUESTION)


@check
async def wrong_parameter():
    async def one(model):
        wrong = agent(model)
        wrong.model_settings.top_p = 3
        error = await refused(BadRequestError, wrong, QUESTION)
        assert error.param == "top_p"

    await each(one)


@check
async def long_prompt():
    async def one(model):
        error = await refused(BadRequestError, agent(model), TOO_LONG)
        assert error.code == "context_length_exceeded"

    await each(one)


run()
