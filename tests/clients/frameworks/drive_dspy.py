"""DSPy, which asks through LiteLLM."""

import contextlib
from typing import Literal

import dspy
from driver import (
    CATEGORIES,
    EMBEDDER,
    MESSAGES,
    MODEL,
    PARAMETERS,
    PRIORITIES,
    QUESTION,
    TOO_LONG,
    V1,
    check,
    raises,
    run,
    same,
)
from dspy.utils.exceptions import AdapterParseError


def chatting(model=MODEL, **more):
    given = {"temperature": 0, "max_tokens": 300, "cache": False, "num_retries": 0, **more}
    return dspy.LM(f"openai/{model}", api_base=V1, api_key="none", timeout=120, **given)


# It sends one by itself only to models that it knows.
SCHEMA = {"type": "json_schema", "json_schema": {"name": "ticket", "schema": PARAMETERS}}


class Triage(dspy.Signature):
    """Say what a ticket is about."""

    ticket: str = dspy.InputField()
    category: Literal[CATEGORIES] = dspy.OutputField()
    priority: Literal[PRIORITIES] = dspy.OutputField()


@check
def chat():
    (text,) = chatting()(messages=MESSAGES)
    same(text if isinstance(text, str) else text["text"])


@check
def responses():
    (text,) = chatting(model_type="responses")(messages=MESSAGES)
    same(text if isinstance(text, str) else text["text"])


@check
async def asynchronous():
    (text,) = await chatting().acall(messages=MESSAGES)
    same(text if isinstance(text, str) else text["text"])


@check
def structured():
    with dspy.context(lm=chatting(response_format=SCHEMA), adapter=dspy.JSONAdapter()):
        answer = dspy.Predict(Triage)(ticket=QUESTION)
    assert answer.category in CATEGORIES
    assert answer.priority in PRIORITIES


@check
async def stream():
    with dspy.context(lm=chatting(response_format=SCHEMA), adapter=dspy.JSONAdapter()):
        listener = dspy.streaming.StreamListener(signature_field_name="category")
        program = dspy.streamify(dspy.Predict(Triage), stream_listeners=[listener])
        *_, last = [part async for part in program(ticket=QUESTION)]
    assert last.category in CATEGORIES


@check
def tools():
    """It lets the model write calls into the answer."""

    def route(category: Literal[CATEGORIES], priority: Literal[PRIORITIES]) -> str:
        """Send a ticket to a team."""
        return "done"

    class Routing(dspy.Signature):
        """Call the tool."""

        ticket: str = dspy.InputField()
        tools: list[dspy.Tool] = dspy.InputField()
        calls: dspy.ToolCalls = dspy.OutputField()

    with (
        dspy.context(lm=chatting(), adapter=dspy.JSONAdapter()),
        contextlib.suppress(AdapterParseError),  # what the model wrote may be no call
    ):
        dspy.Predict(Routing)(ticket=QUESTION, tools=[dspy.Tool(route)])


@check
def embeddings():
    embedder = dspy.Embedder(f"openai/{EMBEDDER}", api_base=V1, api_key="none", caching=False)
    assert embedder(["red fox", "blue"]).shape[0] == 2


@check
def wrong_model():
    assert "none-such" in str(raises(Exception, chatting("none-such"), messages=MESSAGES))


@check
def wrong_parameter():
    assert "top_p" in str(raises(Exception, chatting(top_p=3), messages=MESSAGES))


@check
def long_prompt():
    kind = dspy.ContextWindowExceededError
    raises(kind, chatting(), messages=[{"role": "user", "content": TOO_LONG}])


run()
