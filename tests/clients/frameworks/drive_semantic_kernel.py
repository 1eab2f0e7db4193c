"""Semantic Kernel's connectors for OpenAI."""

from typing import Annotated, Literal

from driver import (
    CATEGORIES,
    EMBEDDER,
    MODEL,
    PRIORITIES,
    QUESTION,
    TOO_LONG,
    V1,
    check,
    run,
    same,
)
from openai import AsyncOpenAI
from pydantic import BaseModel
from semantic_kernel import Kernel
from semantic_kernel.connectors.ai.function_choice_behavior import FunctionChoiceBehavior
from semantic_kernel.connectors.ai.open_ai import (
    OpenAIChatCompletion,
    OpenAIChatPromptExecutionSettings,
    OpenAITextEmbedding,
)
from semantic_kernel.contents import ChatHistory
from semantic_kernel.exceptions import ServiceResponseException
from semantic_kernel.functions import kernel_function

client = AsyncOpenAI(base_url=V1, api_key="none", max_retries=0, timeout=120)


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


def asked(text=QUESTION):
    history = ChatHistory()
    history.add_user_message(text)
    return history


def settings(**more):
    return OpenAIChatPromptExecutionSettings(temperature=0, max_tokens=200, **more)


def chatting(model=MODEL):
    return OpenAIChatCompletion(model, async_client=client)


class Desk:
    def __init__(self):
        self.given = []

    @kernel_function
    def route(
        self,
        refund: Annotated[bool, "whether money is asked for"],
        urgent: Annotated[bool, "whether it is urgent"],
    ) -> str:
        """Send a ticket to a team."""
        self.given.append((refund, urgent))
        return "done"


@check
async def chat():
    answer = await chatting().get_chat_message_content(asked(), settings())
    same(str(answer))
    assert answer.metadata["usage"].completion_tokens > 0


@check
async def stream():
    parts = chatting().get_streaming_chat_message_content(asked(), settings())
    same("".join([str(part) async for part in parts]))


def desk():
    kernel, made = Kernel(), Desk()
    kernel.add_plugin(made, "desk")
    return kernel, made


@check
async def tools():
    """One forced call, which the kernel makes; then it asks again, without tools."""
    kernel, made = desk()
    forced = settings(
        function_choice_behavior=FunctionChoiceBehavior.Required(maximum_auto_invoke_attempts=1)
    )
    answer = await chatting().get_chat_message_content(asked(), forced, kernel=kernel)
    assert len(made.given) == 1
    assert answer is not None


@check
async def streamed_tools():
    kernel, made = desk()
    forced = settings(
        function_choice_behavior=FunctionChoiceBehavior.Required(maximum_auto_invoke_attempts=1)
    )
    parts = chatting().get_streaming_chat_message_content(asked(), forced, kernel=kernel)
    assert [part async for part in parts]
    assert len(made.given) == 1


@check
async def structured():
    for kind in (Ticket, Order):
        answer = await chatting().get_chat_message_content(asked(), settings(response_format=kind))
        kind.model_validate_json(str(answer))


@check
async def embeddings():
    made = OpenAITextEmbedding(EMBEDDER, async_client=client)
    assert (await made.generate_embeddings(["red fox", "blue"])).shape[0] == 2


async def refused(service, history, given, word):
    try:
        result = await service.get_chat_message_content(history, given)
    except ServiceResponseException as error:
        assert word in str(error), error  # noqa: PT017
        return
    raise AssertionError(f"no error but {result!r}")


@check
async def wrong_model():
    await refused(chatting("none-such"), asked(), settings(), "none-such")


@check
async def wrong_parameter():
    await refused(chatting(), asked(), settings(presence_penalty=2, seed=2**70), "seed")


@check
async def long_prompt():
    await refused(chatting(), asked(TOO_LONG), settings(), "context")


run()
