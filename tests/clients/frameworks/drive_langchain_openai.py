"""LangChain's ChatOpenAI."""

from typing import Literal

from driver import (
    CATEGORIES,
    EMBEDDER,
    MODEL,
    PRIORITIES,
    QUESTION,
    TOO_LONG,
    V1,
    check,
    raises,
    run,
    same,
)
from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from openai import BadRequestError, NotFoundError
from pydantic import BaseModel


def chatting(**more):
    given = {"model": MODEL, "temperature": 0, "max_tokens": 200, **more}
    return ChatOpenAI(base_url=V1, api_key="none", max_retries=0, timeout=120, **given)


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
    same(answer.content)
    assert answer.usage_metadata["output_tokens"] > 0


@check
def stream():
    total = AIMessageChunk("")
    for chunk in chatting(stream_usage=True).stream(QUESTION):
        total += chunk
    same(total.content)
    assert total.usage_metadata["output_tokens"] > 0


@check
async def asynchronous():
    same("".join([chunk.content async for chunk in chatting().astream(QUESTION)]))


def told(message):
    (call,) = message.tool_calls
    result = route.invoke(call)
    assert isinstance(result, ToolMessage)
    turns = [HumanMessage(QUESTION), message, result]
    assert chatting().bind_tools([route], tool_choice="none").invoke(turns).content


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
    bound = chatting().bind_tools([Order], tool_choice="any")
    (call,) = bound.invoke(QUESTION).tool_calls
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
def responses():
    same(chatting(use_responses_api=True).invoke(QUESTION).text)
    chunks = chatting(use_responses_api=True).stream(QUESTION)
    same("".join(chunk.text for chunk in chunks))


@check
def responses_tools():
    bound = chatting(use_responses_api=True).bind_tools([route], tool_choice="any")
    answer = bound.invoke(QUESTION)
    (call,) = answer.tool_calls
    turns = [HumanMessage(QUESTION), answer, route.invoke(call)]
    assert chatting(use_responses_api=True).invoke(turns).text


@check
def logprobs():
    answer = chatting(logprobs=True, top_logprobs=5).invoke(QUESTION)
    assert len(answer.response_metadata["logprobs"]["content"][0]["top_logprobs"]) == 5


@check
def embeddings():
    # Without the check it sends token ids of OpenAI's own tokenizer, which it downloads.
    embedder = OpenAIEmbeddings(
        model=EMBEDDER, base_url=V1, api_key="none", check_embedding_ctx_length=False
    )
    assert len(embedder.embed_documents(["red fox", "blue"])) == 2
    assert embedder.embed_query("red")


@check
def wrong_model():
    raises(NotFoundError, chatting(model="none-such").invoke, QUESTION)


@check
def wrong_parameter():
    assert raises(BadRequestError, chatting(top_p=3).invoke, QUESTION).param == "top_p"


@check
def long_prompt():
    raises(ContextOverflowError, chatting().invoke, TOO_LONG)


run()
