"""Haystack's generators and embedders for OpenAI."""

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
    raises,
    routed,
    run,
    same,
)
from haystack import Document
from haystack.components.embedders import OpenAIDocumentEmbedder, OpenAITextEmbedder
from haystack.components.generators.chat import OpenAIChatGenerator
from haystack.components.generators.chat.openai_responses import OpenAIResponsesChatGenerator
from haystack.dataclasses import ChatMessage
from haystack.tools import create_tool_from_function
from haystack.utils import Secret
from openai import BadRequestError, NotFoundError
from pydantic import BaseModel

KEY = Secret.from_token("none")
AT = {"api_key": KEY, "api_base_url": V1, "timeout": 120, "max_retries": 0}
ASKED = ChatMessage.from_user(QUESTION)


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


def chatting(model=MODEL, streaming_callback=None, **more):
    given = {"temperature": 0, "max_completion_tokens": 200, **more}
    return OpenAIChatGenerator(
        model=model, generation_kwargs=given, streaming_callback=streaming_callback, **AT
    )


def answering(**more):
    given = {"temperature": 0, "max_output_tokens": 200}
    return OpenAIResponsesChatGenerator(model=MODEL, generation_kwargs=given, **more, **AT)


@check
def chat():
    (reply,) = chatting().run([ASKED])["replies"]
    same(reply.text)
    assert reply.meta["usage"]["completion_tokens"] > 0


@check
def stream():
    pieces = []
    callback = lambda chunk: pieces.append(chunk.content)  # noqa: E731
    (reply,) = chatting(streaming_callback=callback).run([ASKED])["replies"]
    same("".join(pieces))
    assert reply.text == "".join(pieces)


@check
def responses():
    (reply,) = answering().run([ASKED])["replies"]
    same(reply.text)
    pieces = []
    answering(streaming_callback=lambda chunk: pieces.append(chunk.content)).run([ASKED])
    same("".join(pieces))


def route(
    category: Annotated[Literal[CATEGORIES], "what about"],
    priority: Annotated[Literal[PRIORITIES], "how soon"],
) -> str:
    """Send a ticket to a team."""
    return "done"


TOOL = create_tool_from_function(route)


def told(reply):
    (call,) = reply.tool_calls
    routed(call.arguments)
    result = ChatMessage.from_tool(TOOL.invoke(**call.arguments), origin=call)
    turns = [ASKED, reply, result]
    (again,) = chatting(tool_choice="none").run(turns, tools=[TOOL])["replies"]
    assert again.text


@check
def tools():
    (reply,) = chatting(tool_choice="required").run([ASKED], tools=[TOOL])["replies"]
    told(reply)


@check
def streamed_tools():
    asked = chatting(tool_choice="required", streaming_callback=lambda chunk: None)
    (reply,) = asked.run([ASKED], tools=[TOOL])["replies"]
    told(reply)


@check
def structured():
    for kind in (Ticket, Order):
        (reply,) = chatting(response_format=kind).run([ASKED])["replies"]
        kind.model_validate_json(reply.text)


@check
def embeddings():
    documents = [Document(content="red fox"), Document(content="blue")]
    embedder = OpenAIDocumentEmbedder(api_key=KEY, api_base_url=V1, model=EMBEDDER)
    assert all(document.embedding for document in embedder.run(documents)["documents"])
    one = OpenAITextEmbedder(api_key=KEY, api_base_url=V1, model=EMBEDDER)
    assert one.run("red")["embedding"]


@check
def wrong_model():
    raises(NotFoundError, chatting("none-such").run, [ASKED])


@check
def wrong_parameter():
    assert raises(BadRequestError, chatting(top_p=3).run, [ASKED]).param == "top_p"


@check
def long_prompt():
    error = raises(BadRequestError, chatting().run, [ChatMessage.from_user(TOO_LONG)])
    assert error.code == "context_length_exceeded"


run()
