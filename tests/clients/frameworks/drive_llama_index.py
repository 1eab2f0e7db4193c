"""LlamaIndex's OpenAILike."""

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
    routed,
    run,
    same,
)
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike
from openai import BadRequestError, NotFoundError
from pydantic import BaseModel

ASKED = ChatMessage(role="user", content=QUESTION)


def chatting(**more):
    return OpenAILike(
        **{"model": MODEL, **more},
        api_base=V1,
        api_key="none",
        is_chat_model=True,
        is_function_calling_model=True,
        context_window=4096,
        temperature=0,
        max_tokens=200,
        max_retries=0,
        timeout=120,
    )


def route(category: Literal[CATEGORIES], priority: Literal[PRIORITIES]) -> str:
    """Send a ticket to a team."""
    return "done"


TOOL = FunctionTool.from_defaults(route)


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
    same(chatting().chat([ASKED]).message.content)
    same(chatting().complete(QUESTION).text)


@check
def stream():
    chunks = list(chatting().stream_chat([ASKED]))
    same("".join(chunk.delta or "" for chunk in chunks))
    same(chunks[-1].message.content)


@check
async def asynchronous():
    chunks = await chatting().astream_chat([ASKED])
    same("".join([chunk.delta or "" async for chunk in chunks]))


@check
def completions():
    llm = chatting()
    llm.is_chat_model = False
    assert llm.complete("My Solara").text


def told(llm, response):
    (call,) = llm.get_tool_calls_from_response(response)
    routed(call.tool_kwargs)
    result = ChatMessage(
        role="tool", content="done", additional_kwargs={"tool_call_id": call.tool_id}
    )
    again = llm.chat_with_tools(
        [TOOL], chat_history=[ASKED, response.message, result], tool_choice="none"
    )
    assert again.message.content


@check
def tools():
    llm = chatting()
    told(llm, llm.chat_with_tools([TOOL], user_msg=QUESTION, tool_required=True))


@check
def streamed_tools():
    llm = chatting()
    *_, last = llm.stream_chat_with_tools([TOOL], user_msg=QUESTION, tool_required=True)
    told(llm, last)


@check
def structured():
    response = chatting().as_structured_llm(Ticket).chat([ASKED])
    assert isinstance(response.raw, Ticket)


@check
def streamed_structured():
    *_, last = chatting().as_structured_llm(Ticket).stream_chat([ASKED])
    Ticket.model_validate(last.raw.model_dump())


@check
def nested_structured():
    response = chatting().as_structured_llm(Order).chat([ASKED])
    assert isinstance(response.raw, Order)


@check
def embeddings():
    embedder = OpenAILikeEmbedding(model_name=EMBEDDER, api_base=V1, api_key="none")
    assert len(embedder.get_text_embedding_batch(["red fox", "blue"])) == 2
    assert embedder.get_query_embedding("red")


@check
def wrong_model():
    raises(NotFoundError, chatting(model="none-such").chat, [ASKED])


@check
def wrong_parameter():
    error = raises(BadRequestError, chatting(additional_kwargs={"top_p": 3}).chat, [ASKED])
    assert error.param == "top_p"


@check
def long_prompt():
    error = raises(BadRequestError, chatting().chat, [ChatMessage(role="user", content=TOO_LONG)])
    assert error.code == "context_length_exceeded"


run()
