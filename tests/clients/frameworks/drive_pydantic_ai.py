"""Pydantic AI: agents over OpenAI's chat and responses, and over Anthropic's messages."""

from typing import Literal

from driver import (
    CATEGORIES,
    EMBEDDER,
    MODEL,
    PRIORITIES,
    QUESTION,
    TOO_LONG,
    URL,
    V1,
    check,
    routed,
    run,
    same,
)
from pydantic import BaseModel
from pydantic_ai import Agent, Embedder, NativeOutput, ToolOutput
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.embeddings.openai import OpenAIEmbeddingModel
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider

OPENAI = OpenAIProvider(base_url=V1, api_key="none")
CHAT = OpenAIChatModel(MODEL, provider=OPENAI)
RESPONSES = OpenAIResponsesModel(MODEL, provider=OPENAI)
CLAUDE_PROVIDER = AnthropicProvider(base_url=URL, api_key="none")
CLAUDE = AnthropicModel(MODEL, provider=CLAUDE_PROVIDER)
SETTINGS = {"temperature": 0, "max_tokens": 200, "timeout": 120}


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


def outputs(model):
    # It knows which of Anthropic's own models take a schema.
    return [ToolOutput] if model is CLAUDE else [ToolOutput, NativeOutput]


async def refused(asked, question, **more):
    try:
        result = await asked.run(question, **more)
    except ModelHTTPError as error:
        return error
    raise AssertionError(f"no error but {result!r}")


def agent(model=CHAT, **more):
    return Agent(model, model_settings=SETTINGS, retries=0, **more)


async def each(check_one):
    """Does it for each of the models, and says for which one it failed."""
    for model in (CHAT, RESPONSES, CLAUDE):
        try:
            await check_one(model)
        except Exception as error:
            error.add_note(f"with {type(model).__name__}")
            raise


@check
async def chat():
    async def one(model):
        result = await agent(model).run(QUESTION)
        same(result.output)
        assert result.usage.output_tokens > 0

    await each(one)


@check
async def stream():
    async def one(model):
        async with agent(model).run_stream(QUESTION) as result:
            same("".join([piece async for piece in result.stream_text(delta=True)]))
            assert result.usage.output_tokens > 0

    await each(one)


class FirstStep(AbstractCapability):
    """The tool must be called in the first step, and must not be in the others."""

    def get_model_settings(self):
        return lambda context: {"tool_choice": "none" if context.run_step > 1 else "required"}


def routing(model, given):
    def route(category: Literal[CATEGORIES], priority: Literal[PRIORITIES]) -> str:
        """Send a ticket to a team."""
        given.append({"category": category, "priority": priority})
        return "done"

    return agent(model, tools=[route], capabilities=[FirstStep()])


@check
async def tools():
    async def one(model):
        given = []
        assert (await routing(model, given).run(QUESTION)).output
        (call,) = given
        routed(call)

    await each(one)


@check
async def streamed_tools():
    async def one(model):
        given = []
        async with routing(model, given).run_stream(QUESTION) as result:
            assert "".join([piece async for piece in result.stream_text(delta=True)])
        (call,) = given
        routed(call)

    await each(one)


@check
async def structured():
    async def one(model):
        for kind in (Ticket, Order):
            for output in outputs(model):
                result = await agent(model, output_type=output(kind)).run(QUESTION)
                assert isinstance(result.output, kind)

    await each(one)


@check
async def streamed_structured():
    async def one(model):
        for output in outputs(model):
            async with agent(model, output_type=output(Order)).run_stream(QUESTION) as result:
                assert isinstance(await result.get_output(), Order)

    await each(one)


@check
async def embeddings():
    embedder = Embedder(OpenAIEmbeddingModel(EMBEDDER, provider=OPENAI))
    assert len((await embedder.embed_documents(["red fox", "blue"])).embeddings) == 2


@check
async def wrong_model():
    for model in (
        OpenAIChatModel("none-such", provider=OPENAI),
        OpenAIResponsesModel("none-such", provider=OPENAI),
        AnthropicModel("none-such", provider=CLAUDE_PROVIDER),
    ):
        assert (await refused(agent(model), QUESTION)).status_code == 404


@check
async def wrong_parameter():
    async def one(model):
        wrong = {"top_p": 3}
        error = await refused(agent(model), QUESTION, model_settings=wrong)
        assert error.status_code == 400
        assert "top_p" in str(error.body)

    await each(one)


@check
async def long_prompt():
    async def one(model):
        error = await refused(agent(model), TOO_LONG)
        assert error.status_code == 400
        assert "context" in str(error.body)

    await each(one)


run()
