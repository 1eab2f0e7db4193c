"""OpenAI's client for Python."""

import json
import math
import time
from typing import Literal

import openai
from driver import (
    ABOUT,
    CATEGORIES,
    EMBEDDER,
    MESSAGES,
    MODEL,
    PARAMETERS,
    PRIORITIES,
    QUESTION,
    TOO_LONG,
    TOOL,
    URL,
    V1,
    check,
    raises,
    routed,
    run,
    same,
)
from pydantic import BaseModel

client = openai.OpenAI(base_url=V1, api_key="none", max_retries=0, timeout=120)
# Where the limit ends an answer, its helpers raise: the answer ends with its first sentence.
ASK = {"model": MODEL, "messages": MESSAGES, "temperature": 0, "max_tokens": 100, "stop": ["."]}
FORCED = {"type": "function", "function": {"name": "route"}}


class Ticket(BaseModel):
    category: Literal[CATEGORIES]
    priority: Literal[PRIORITIES]


class Item(BaseModel):
    product: Literal["printer", "phone"]
    count: Literal[1, 2, 3]


class Order(BaseModel):
    category: Literal[CATEGORIES]
    item: Item


@check
def models():
    assert MODEL in [model.id for model in client.models.list()]
    assert client.models.retrieve(MODEL).id == MODEL


@check
def chat():
    answer = client.chat.completions.create(**ASK)
    same(answer.choices[0].message.content)
    assert answer.usage.total_tokens > answer.usage.completion_tokens > 0


@check
def stream():
    with client.chat.completions.stream(**ASK, stream_options={"include_usage": True}) as events:
        text = "".join(event.delta for event in events if event.type == "content.delta")
        final = events.get_final_completion()
    same(text)
    assert final.choices[0].message.content == text
    assert final.usage.completion_tokens > 0


@check
async def asynchronous():
    async with openai.AsyncOpenAI(base_url=V1, api_key="none", max_retries=0) as client:
        chunks = await client.chat.completions.create(**ASK, stream=True)
        same("".join([chunk.choices[0].delta.content or "" async for chunk in chunks]))


def told(message):
    (call,) = message.tool_calls
    assert call.function.name == "route"
    routed(json.loads(call.function.arguments))
    result = {"role": "tool", "tool_call_id": call.id, "content": "done"}
    turns = [*MESSAGES, message.model_dump(exclude_none=True, exclude={"parsed"}), result]
    answer = client.chat.completions.create(
        **{**ASK, "messages": turns}, tools=[TOOL], tool_choice="none"
    )
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason in ("stop", "length")


@check
def tools():
    answer = client.chat.completions.create(**ASK, tools=[TOOL], tool_choice=FORCED)
    assert answer.choices[0].finish_reason == "tool_calls"
    told(answer.choices[0].message)


@check
def streamed_tools():
    with client.chat.completions.stream(**ASK, tools=[TOOL], tool_choice=FORCED) as events:
        kinds = {event.type for event in events}
        final = events.get_final_completion()
    assert "tool_calls.function.arguments.delta" in kinds
    assert "tool_calls.function.arguments.done" in kinds
    assert final.choices[0].finish_reason == "tool_calls"
    told(final.choices[0].message)


@check
def allowed_tools():
    allowed = {"mode": "required", "tools": [{"type": "function", "function": {"name": "route"}}]}
    other = {"type": "function", "function": {**TOOL["function"], "name": "other"}}
    answer = client.chat.completions.create(
        **ASK,
        tools=[other, TOOL],
        tool_choice={"type": "allowed_tools", "allowed_tools": allowed},
    )
    told(answer.choices[0].message)


@check
def functions():
    """What tools were before."""
    answer = client.chat.completions.create(
        **ASK, functions=[TOOL["function"]], function_call={"name": "route"}
    )
    assert answer.choices[0].finish_reason == "function_call"
    routed(json.loads(answer.choices[0].message.function_call.arguments))


@check
def custom_tools():
    tool = {"type": "custom", "custom": {"name": "say", "description": "Say something."}}
    answer = client.chat.completions.create(**ASK, tools=[tool], tool_choice="required")
    (call,) = answer.choices[0].message.tool_calls
    assert (call.type, call.custom.name) == ("custom", "say")


@check
def several():
    answer = client.chat.completions.create(**{**ASK, "temperature": 1}, n=3, seed=1)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    with client.chat.completions.create(**ASK, n=2, stream=True) as chunks:
        assert {chunk.choices[0].index for chunk in chunks} == {0, 1}


@check
def much_to_say():
    """A limit beyond the context is cut to what is left of it."""
    answer = client.chat.completions.create(**{**ASK, "max_tokens": 100_000})
    assert answer.choices[0].message.content


@check
def nested_tools():
    tool = openai.pydantic_function_tool(Order, name="order")
    with client.chat.completions.stream(
        **{**ASK, "max_tokens": 200}, tools=[tool], tool_choice="required"
    ) as events:
        final = events.get_final_completion()
    (call,) = final.choices[0].message.tool_calls
    assert isinstance(call.function.parsed_arguments, Order)


@check
def structured():
    parsed = client.chat.completions.parse(**ASK, response_format=Ticket)
    assert isinstance(parsed.choices[0].message.parsed, Ticket)


@check
def nested_structured():
    with client.chat.completions.stream(
        **{**ASK, "max_tokens": 200}, response_format=Order
    ) as events:
        final = events.get_final_completion()
    assert isinstance(final.choices[0].message.parsed, Order)


@check
def logprobs():
    answer = client.chat.completions.create(**ASK, logprobs=True, top_logprobs=5)
    entries = answer.choices[0].logprobs.content
    assert "".join(entry.token for entry in entries)
    for entry in entries:
        assert len(entry.top_logprobs) == 5, entries
        assert entry.logprob <= 0


@check
def options():
    """What people leave in their calls."""
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "developer", "content": "Be brief."}, *MESSAGES],
        temperature=0,
        top_p=1,
        n=1,
        max_completion_tokens=50,
        presence_penalty=0,
        frequency_penalty=0,
        logit_bias=None,
        stop=None,
        seed=None,
        tools=openai.omit,
        parallel_tool_calls=True,
        user="someone",
        store=False,
        metadata={"run": "1"},
        service_tier="auto",
        reasoning_effort="low",
        response_format={"type": "text"},
        prompt_cache_key="key",
        safety_identifier="someone",
    )
    assert answer.choices[0].message.content


@check
def logit_bias():
    answer = client.chat.completions.create(**ASK, logit_bias={"1": -100})
    assert answer.choices[0].message.content


@check
def responses():
    ask = {"model": MODEL, "input": QUESTION, "temperature": 0, "max_output_tokens": 100}
    answer = client.responses.create(**ask)
    same(answer.output_text)
    with client.responses.stream(**ask) as events:
        seen = list(events)
    assert seen[-1].response.output_text == answer.output_text
    assert [event.sequence_number for event in seen] == list(range(len(seen)))
    assert seen[0].type == "response.created"
    assert seen[0].response.output == []


@check
def responses_tools():
    tool = {"type": "function", "name": "route", "description": ABOUT, "strict": True}
    ask = {"model": MODEL, "temperature": 0, "max_output_tokens": 100}
    ask["tools"] = [{**tool, "parameters": PARAMETERS}]
    with client.responses.stream(**ask, input=QUESTION, tool_choice="required") as events:
        kinds = [event.type for event in events]
        (call,) = events.get_final_response().output
    assert "response.function_call_arguments.done" in kinds
    routed(json.loads(call.arguments))
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "done"}
    turns = [*MESSAGES, call.model_dump(exclude={"parsed_arguments"}), result]
    assert client.responses.create(**ask, input=turns, tool_choice="none").output_text


@check
def responses_structured():
    answer = client.responses.parse(
        model=MODEL, input=QUESTION, text_format=Ticket, temperature=0, max_output_tokens=100
    )
    assert isinstance(answer.output_parsed, Ticket)


@check
def stored_responses():
    first = client.responses.create(
        model=MODEL, input=QUESTION, temperature=0, max_output_tokens=20, store=True
    )
    second = client.responses.create(
        model=MODEL,
        input="And now?",
        previous_response_id=first.id,
        temperature=0,
        max_output_tokens=20,
    )
    assert second.previous_response_id == first.id
    assert client.responses.retrieve(first.id).output_text == first.output_text


@check
def completions():
    ask = {"model": MODEL, "prompt": "My Solara", "temperature": 0, "max_tokens": 6}
    answer = client.completions.create(**ask)
    with client.completions.create(**ask, stream=True) as chunks:
        assert "".join(chunk.choices[0].text for chunk in chunks) == answer.choices[0].text


@check
def echoed_logprobs():
    answer = client.completions.create(
        model=MODEL, prompt="My Solara", echo=True, logprobs=1, max_tokens=1, temperature=0
    )
    known = answer.choices[0].logprobs
    assert len(known.tokens) == len(known.token_logprobs) == answer.usage.total_tokens
    assert known.token_logprobs[0] is None
    assert all(value <= 0 for value in known.token_logprobs[1:])
    assert known.text_offset[0] == 0


@check
def embeddings():
    packed = client.embeddings.create(model=EMBEDDER, input=["red fox", "blue"])  # as base64
    floats = client.embeddings.create(
        model=EMBEDDER, input=["red fox", "blue"], encoding_format="float"
    )
    for one, other in zip(packed.data, floats.data, strict=True):
        assert len(one.embedding) == len(other.embedding) > 0
        assert all(
            math.isclose(*pair, abs_tol=1e-6)
            for pair in zip(one.embedding, other.embedding, strict=True)
        )


@check
def token_embeddings():
    ids = client.post(f"{URL}/tokenize", body={"model": EMBEDDER, "prompt": "red"}, cast_to=object)
    answer = client.embeddings.create(model=EMBEDDER, input=[ids["tokens"]])
    assert len(answer.data) == 1


@check
def shorter_embeddings():
    answer = client.embeddings.create(model=EMBEDDER, input="red fox", dimensions=4)
    assert len(answer.data[0].embedding) == 4


def lines(**bodies):
    """The content of a file with these requests."""
    line = {"method": "POST", "url": "/v1/chat/completions"}
    made = [{"custom_id": name, **line, "body": body} for name, body in bodies.items()]
    return "\n".join(map(json.dumps, made)).encode()


def ended(batch):
    while batch.status not in ("completed", "failed", "expired", "cancelled"):
        time.sleep(0.05)
        batch = client.batches.retrieve(batch.id)
    return batch


def read(file):
    return [json.loads(line) for line in client.files.content(file).text.splitlines()]


@check
def batches():
    given = ("lines.jsonl", lines(good=ASK, bad={**ASK, "temperature": 7}))
    kept = {"anchor": "created_at", "seconds": 3600}
    file = client.files.create(file=given, purpose="batch", expires_after=kept)
    assert file.expires_at == file.created_at + 3600
    assert file.id in [one.id for one in client.files.list(purpose="batch", order="desc", limit=1)]
    batch = client.batches.create(
        input_file_id=file.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        metadata={"run": "1"},
    )
    batch = ended(batch)
    assert (batch.status, batch.metadata) == ("completed", {"run": "1"}), batch
    counts = batch.request_counts
    assert (counts.total, counts.completed, counts.failed) == (2, 1, 1)
    (answer,), (error,) = read(batch.output_file_id), read(batch.error_file_id)
    assert (answer["custom_id"], error["custom_id"]) == ("good", "bad")
    same(answer["response"]["body"]["choices"][0]["message"]["content"])
    assert error["response"]["status_code"] == 400
    assert batch.id in [one.id for one in client.batches.list(limit=1)]
    assert client.files.delete(file.id).deleted


@check
def uploads():
    given = lines(**{str(number): ASK for number in range(20)})
    file = client.uploads.upload_file_chunked(
        file=given,
        filename="lines.jsonl",
        bytes=len(given),
        mime_type="application/jsonl",
        purpose="batch",
        part_size=1000,
    ).file
    assert client.files.content(file.id).content == given


@check
def cancelled_batch():
    given = lines(**{str(number): {**ASK, "seed": number} for number in range(2000)})
    file = client.files.create(file=("lines.jsonl", given), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    assert client.batches.cancel(batch.id).status == "cancelling"
    batch = ended(batch)
    assert (batch.status, batch.request_counts.total) == ("cancelled", 2000)
    codes = {line["error"]["code"] for line in read(batch.error_file_id)}
    assert codes == {"batch_cancelled"}


@check
def wrong_batch():
    file = client.files.create(file=("lines.jsonl", b'{"custom_id": "a"}'), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    (fault,) = ended(batch).errors.data
    assert fault.line == 1
    assert raises(openai.NotFoundError, client.batches.retrieve, "batch_none")
    error = raises(openai.BadRequestError, client.files.list, purpose="batch", limit=0)
    assert error.param == "limit"


@check
def wrong_model():
    error = raises(
        openai.NotFoundError, client.chat.completions.create, **{**ASK, "model": "none-such"}
    )
    assert (error.code, error.param) == ("model_not_found", "model")


@check
def wrong_parameter():
    error = raises(
        openai.BadRequestError, client.chat.completions.create, **{**ASK, "temperature": 7}
    )
    assert error.param == "temperature"
    error = raises(openai.BadRequestError, client.chat.completions.create, **{**ASK, "top_p": 3})
    assert error.param == "top_p"


@check
def long_prompt():
    messages = [{"role": "user", "content": TOO_LONG}]
    error = raises(
        openai.BadRequestError, client.chat.completions.create, **{**ASK, "messages": messages}
    )
    assert (error.code, error.param) == ("context_length_exceeded", "messages")
    assert "maximum context length is" in error.message


@check
def refused():
    """What no setting can change is not sent again."""
    error = raises(openai.APIStatusError, client.embeddings.create, model=MODEL, input="x")
    assert error.status_code == 400, error
    assert error.response.headers["x-should-retry"] == "false"


run()
