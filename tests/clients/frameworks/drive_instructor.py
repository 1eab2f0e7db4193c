"""Instructor, over OpenAI's client, in each of its ways to ask for a structure."""

from typing import Literal

import instructor
import openai
from driver import (
    CATEGORIES,
    MESSAGES,
    MODEL,
    PRIORITIES,
    TOO_LONG,
    V1,
    check,
    raises,
    run,
    same,
)
from instructor.core import IncompleteOutputException, InstructorRetryException
from pydantic import BaseModel

plain = openai.OpenAI(base_url=V1, api_key="none", max_retries=0, timeout=120)
ASK = {
    "model": MODEL,
    "messages": MESSAGES,
    "temperature": 0,
    "max_tokens": 200,
    "max_retries": 0,
}


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


def asking(mode):
    return instructor.from_openai(plain, mode=mode)


@check
def chat():
    client = asking(instructor.Mode.TOOLS)
    same(client.chat.completions.create(**ASK, response_model=None).choices[0].message.content)


@check
def tools():
    client = asking(instructor.Mode.TOOLS)
    assert isinstance(client.chat.completions.create(**ASK, response_model=Ticket), Ticket)


@check
def nested_tools():
    client = asking(instructor.Mode.TOOLS)
    assert isinstance(client.chat.completions.create(**ASK, response_model=Order), Order)


@check
def strict_tools():
    client = asking(instructor.Mode.TOOLS_STRICT)
    assert isinstance(client.chat.completions.create(**ASK, response_model=Order), Order)


@check
def streamed_tools():
    client = asking(instructor.Mode.TOOLS)
    *_, last = client.chat.completions.create_partial(**ASK, response_model=Order)
    Order.model_validate(last.model_dump())


@check
def structured():
    client = asking(instructor.Mode.JSON_SCHEMA)
    assert isinstance(client.chat.completions.create(**ASK, response_model=Ticket), Ticket)


@check
def nested_structured():
    client = asking(instructor.Mode.JSON_SCHEMA)
    assert isinstance(client.chat.completions.create(**ASK, response_model=Order), Order)


@check
def streamed_structured():
    client = asking(instructor.Mode.JSON_SCHEMA)
    *_, last = client.chat.completions.create_partial(**ASK, response_model=Order)
    Order.model_validate(last.model_dump())


@check
def json_object():
    """It asks for any JSON object, and puts the schema into the prompt."""
    client = asking(instructor.Mode.JSON)
    try:
        client.chat.completions.create(**ASK, response_model=Ticket)
    except (InstructorRetryException, IncompleteOutputException) as error:
        # A small model may make another object.
        if isinstance(error.__cause__, openai.APIError):
            raise


@check
def wrong_model():
    client = asking(instructor.Mode.TOOLS)
    wrong = {**ASK, "model": "none-such"}
    error = raises(
        InstructorRetryException, client.chat.completions.create, **wrong, response_model=Ticket
    )
    assert "none-such" in str(error)


@check
def wrong_parameter():
    client = asking(instructor.Mode.TOOLS)
    wrong = {**ASK, "top_p": 3}
    error = raises(
        InstructorRetryException, client.chat.completions.create, **wrong, response_model=Ticket
    )
    assert "top_p" in str(error)


@check
def long_prompt():
    client = asking(instructor.Mode.TOOLS)
    long = {**ASK, "messages": [{"role": "user", "content": TOO_LONG}]}
    error = raises(
        InstructorRetryException, client.chat.completions.create, **long, response_model=Ticket
    )
    assert "context" in str(error)


run()
