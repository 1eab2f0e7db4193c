"""Inspect: its providers for any OpenAI server, for vLLM's and for Anthropic's."""

from typing import Literal

from driver import (
    ANSWER,
    CATEGORIES,
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
from inspect_ai import Task, eval_async
from inspect_ai.dataset import Sample
from inspect_ai.model import GenerateConfig, ResponseSchema, get_model
from inspect_ai.model._chat_message import ChatMessageTool, ChatMessageUser
from inspect_ai.scorer import includes
from inspect_ai.solver import generate
from inspect_ai.tool import ToolFunction, tool
from inspect_ai.util import json_schema
from pydantic import BaseModel


def chatting(provider="openai-api/penstock", name=MODEL, **more):
    config = GenerateConfig(temperature=0, max_tokens=200, max_retries=0, **more)
    url = URL if provider == "anthropic" else V1
    return get_model(f"{provider}/{name}", base_url=url, api_key="none", config=config)


PROVIDERS = ["openai-api/penstock", "vllm", "anthropic"]


async def each(check_one):
    """Does it for each provider, and says for which one it failed."""
    for provider in PROVIDERS:
        try:
            await check_one(provider)
        except Exception as error:
            error.add_note(f"with {provider}")
            raise


@tool
def route():
    async def execute(category: Literal[CATEGORIES], priority: Literal[PRIORITIES]) -> str:
        """Send a ticket to a team.

        Args:
            category: what about
            priority: how soon
        """
        return "done"

    return execute


class Ticket(BaseModel):
    category: Literal[CATEGORIES]
    priority: Literal[PRIORITIES]


@check
async def chat():
    async def one(provider):
        output = await chatting(provider).generate(QUESTION)
        same(output.completion)
        assert output.usage.output_tokens > 0

    await each(one)


@check
async def tools():
    async def one(provider):
        model = chatting(provider)
        output = await model.generate(
            QUESTION, tools=[route()], tool_choice=ToolFunction(name="route")
        )
        (call,) = output.message.tool_calls
        routed(call.arguments)
        result = ChatMessageTool(content="done", tool_call_id=call.id, function="route")
        turns = [ChatMessageUser(content=QUESTION), output.message, result]
        again = await model.generate(turns, tools=[route()], tool_choice="none")
        assert again.completion

    await each(one)


@check
async def structured():
    schema = ResponseSchema(name="ticket", json_schema=json_schema(Ticket))
    for provider in PROVIDERS[:2]:
        output = await chatting(provider, response_schema=schema).generate(QUESTION)
        Ticket.model_validate_json(output.completion)


@check
async def logprobs():
    output = await chatting(logprobs=True, top_logprobs=5).generate(QUESTION)
    assert len(output.choices[0].logprobs.content[0].top_logprobs) == 5


@check
async def evaluation():
    task = Task(
        dataset=[Sample(id=n, input=QUESTION, target=ANSWER or "a") for n in range(4)],
        solver=generate(),
        scorer=includes(),
    )
    (log,) = await eval_async(task, model=chatting(), log_dir="logs")
    assert log.status == "success", log.error
    if ANSWER:
        assert log.results.scores[0].metrics["accuracy"].value == 1


async def refused(model, text, word):
    try:
        output = await model.generate(text)
    except Exception as error:
        assert word in str(error), error  # noqa: PT017
        return
    # It takes some refusals for answers that were stopped.
    assert output.stop_reason == "model_length", output
    assert word == "context"


@check
async def wrong_model():
    async def one(provider):
        await refused(chatting(provider, "none-such"), QUESTION, "none-such")

    await each(one)


@check
async def wrong_parameter():
    for provider in PROVIDERS[:2]:  # it sends Anthropic no top_p beside a temperature
        await refused(chatting(provider, top_p=3), QUESTION, "top_p")


@check
async def long_prompt():
    """It ends the sample with `model_length`, where it knows the words."""

    async def one(provider):
        output = await chatting(provider).generate(TOO_LONG)
        assert output.stop_reason == "model_length", output

    await each(one)


run()
