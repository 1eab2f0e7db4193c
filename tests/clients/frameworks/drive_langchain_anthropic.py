"""LangChain's ChatAnthropic."""

from typing import Literal

from anthropic import BadRequestError, NotFoundError
from driver import (
    CATEGORIES,
    MODEL,
    PRIORITIES,
    QUESTION,
    TOO_LONG,
    URL,
    check,
    raises,
    run,
    same,
)
from langchain_anthropic import ChatAnthropic
from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.tools import tool
from pydantic import BaseModel


def chatting(**more):
    given = {"model": MODEL, "temperature": 0, "max_tokens": 200, **more}
    return ChatAnthropic(base_url=URL, api_key="none", max_retries=0, timeout=120, **given)


@tool
def route(category: Literal[CATEGORIES], priority: Literal[PRIORITIES]) -> str:
    """Send a ticket to a team."""
    return "done"


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


@check
def chat():
    answer = chatting().invoke(QUESTION)
    same(answer.text)
    assert answer.usage_metadata["output_tokens"] > 0


@check
def stream():
    total = AIMessageChunk("")
    for chunk in chatting().stream(QUESTION):
        total += chunk
    same(total.text)
    assert total.usage_metadata["output_tokens"] > 0


@check
async def asynchronous():
    same("".join([chunk.text async for chunk in chatting().astream(QUESTION)]))


def told(message):
    (call,) = message.tool_calls
    result = route.invoke(call)
    assert isinstance(result, ToolMessage)
    turns = [HumanMessage(QUESTION), message, result]
    assert chatting().bind_tools([route], tool_choice={"type": "none"}).invoke(turns).text


@check
def tools():
    for choice in ("route", "any"):
        told(chatting().bind_tools([route], tool_choice=choice).invoke(QUESTION))


@check
def streamed_tools():
    total = AIMessageChunk("")
    for chunk in chatting().bind_tools([route], tool_choice="any").stream(QUESTION):
        total += chunk
    assert not total.invalid_tool_calls
    told(total)


@check
def nested_tools():
    (call,) = chatting().bind_tools([Order], tool_choice="any").invoke(QUESTION).tool_calls
    Order.model_validate(call["args"])


@check
def structured():
    for method in ("json_schema", "function_calling"):
        answer = chatting().with_structured_output(Ticket, method=method).invoke(QUESTION)
        assert isinstance(answer, Ticket)


@check
def nested_structured():
    for method in ("json_schema", "function_calling"):
        answer = chatting().with_structured_output(Order, method=method).invoke(QUESTION)
        assert isinstance(answer, Order)


@check
def count_tokens():
    assert chatting().get_num_tokens_from_messages([HumanMessage(QUESTION)]) > 0


@check
def wrong_model():
    raises(NotFoundError, chatting(model="none-such").invoke, QUESTION)


@check
def wrong_parameter():
    assert "top_p" in str(raises(BadRequestError, chatting(top_p=3).invoke, QUESTION))


@check
def long_prompt():
    raises(ContextOverflowError, chatting().invoke, TOO_LONG)


run()
