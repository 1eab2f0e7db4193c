from __future__ import annotations

import json
from typing import Any

import pytest

from penstock.errors import EngineError
from penstock.openai.framing import ChatFramer, CompletionFramer, Framer
from penstock.openai.messages_api import MessageFramer, message_body
from penstock.openai.response_events import ResponseFramer
from penstock.openai.responses import Answers, chat_completion, usage_body
from penstock.openai.responses_api import Reasoning, ResponseBody, response_body
from penstock.types import Delta, TokenLogprob, ToolCallPart, Usage

ABOUT: Any = {"id": "x", "created": 7, "model": 'a "model"'}
LAST = Delta(finish_reason="stop", usage=Usage(3, 2, 1))
FRAMERS = [
    ChatFramer(**ABOUT),
    CompletionFramer(**ABOUT),
    ResponseFramer(ResponseBody(input="q"), **ABOUT),
    MessageFramer(id="x", model='a "model"'),
]


def parsed(stream: bytes) -> list[Any]:
    assert stream.endswith(b"\n\n")
    lines = [line for block in stream.decode().split("\n\n")[:-1] for line in block.split("\n")]
    return [
        json.loads(line[6:])
        for line in lines
        if line.startswith("data: ") and line != "data: [DONE]"
    ]


@pytest.mark.parametrize("framer", FRAMERS, ids=lambda framer: type(framer).__name__)
def test_every_event_is_json_whatever_the_text(framer: Framer) -> None:
    text = 'line\nbreak\r "quote" \u2028 \x00 \\ 🙂 data: [DONE]'
    stream = framer.open() + framer.frame(Delta(text=text)) + framer.frame(LAST) + framer.close()
    assert text in [value for event in parsed(stream) for value in _texts(event)]


def _texts(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for inner in value.values() for text in _texts(inner)]
    if isinstance(value, list):
        return [text for inner in value for text in _texts(inner)]
    return [value] if isinstance(value, str) else []


def test_chunks_of_another_server_get_this_streams_head_and_come_first() -> None:
    chunk = b'{"index":0,"delta":{"content":"a","reasoning":"r"},"finish_reason":null}]}'
    first, second, last = parsed(
        ChatFramer(**ABOUT).frame(Delta(text="b", chunks=(chunk, chunk), finish_reason="stop"))
    )
    assert first == second
    assert first["choices"][0]["delta"] == {"content": "a", "reasoning": "r"}
    assert (first["id"], first["created"], first["model"]) == (
        last["id"],
        last["created"],
        last["model"],
    )
    assert last["choices"][0]["delta"] == {"content": "b"}


@pytest.mark.parametrize("framer", FRAMERS, ids=lambda framer: type(framer).__name__)
def test_an_error_is_an_event(framer: Framer) -> None:
    assert "broken" in json.dumps(parsed(framer.error(EngineError("broken"))))


def test_the_fast_path_and_the_full_one_agree() -> None:
    framer = ChatFramer(**ABOUT)
    (fast,) = parsed(framer.frame(Delta(text="é")))
    (full,) = parsed(framer.frame(Delta(text="é", logprobs=(TokenLogprob("é", -0.5),))))
    assert full["choices"][0].pop("logprobs")["content"][0]["bytes"] == [195, 169]
    assert fast["choices"][0].pop("logprobs") is None
    assert fast == full


def test_reasoning_has_a_key_of_its_own() -> None:
    framer = ChatFramer(**ABOUT)
    (thought,) = parsed(framer.frame(Delta(reasoning="hm")))
    assert thought["choices"][0]["delta"] == {"reasoning": "hm", "reasoning_content": "hm"}
    answers = Answers()
    for delta in (Delta(reasoning="h"), Delta(reasoning="m"), Delta(text="a"), LAST):
        answers.add(delta)
    message = chat_completion(answers, **ABOUT)["choices"][0]["message"]
    named = {"reasoning": "hm", "reasoning_content": "hm"}
    assert message == {"role": "assistant", **named, "content": "a"}


def test_a_delta_without_text_makes_no_chunk() -> None:
    assert ChatFramer(**ABOUT).frame(Delta(token_ids=(1,))) == b""
    assert CompletionFramer(**ABOUT).frame(Delta(token_ids=(1,))) == b""


def test_token_ids_come_with_each_chunk_and_the_prompts_with_the_first() -> None:
    first = Delta(text="a", token_ids=(5, 6), usage=Usage(2, 0), prompt_token_ids=(1, 2))
    deltas = [first, Delta(token_ids=(7,)), LAST]
    usage: Any = {"include_usage": True, "token_ids": True}
    for running in (False, True):
        framer: Any = ChatFramer(**ABOUT, continuous_usage=running, **usage)
        one, two, end, _ = parsed(b"".join(map(framer.frame, deltas)) + framer.close())
        assert (one["prompt_token_ids"], "prompt_token_ids" in two) == ([1, 2], False)
        assert [c["choices"][0]["token_ids"] for c in (one, two, end)] == [[5, 6], [7], []]
        assert [c["choices"][0]["delta"] for c in (one, two)] == [{"content": "a"}, {}]
        framer = CompletionFramer(**ABOUT, continuous_usage=running, **usage)
        one, two, end, _ = parsed(b"".join(map(framer.frame, deltas)) + framer.close())
        (one,), (two,), (end,) = one["choices"], two["choices"], end["choices"]
        assert (one["prompt_token_ids"], "prompt_token_ids" in two) == ([1, 2], False)
        assert [choice["token_ids"] for choice in (one, two, end)] == [[5, 6], [7], []]


def test_completion_offsets_go_on_from_chunk_to_chunk() -> None:
    framer = CompletionFramer(**ABOUT)
    offsets = []
    for token in ("ab", "c", "d"):
        (chunk,) = parsed(framer.frame(Delta(text=token, logprobs=(TokenLogprob(token, -1.0),))))
        offsets += chunk["choices"][0]["logprobs"]["text_offset"]
    assert offsets == [0, 2, 3]


def test_usage_of_several_prompts_counts_each_prompt_once() -> None:
    framer = CompletionFramer(**ABOUT, n=2, include_usage=True)
    for index in range(4):
        framer.frame(Delta(index=index, text="x", finish_reason="stop", usage=Usage(10, 1)))
    (last,) = parsed(framer.close().removesuffix(b"data: [DONE]\n\n"))
    assert last["usage"]["prompt_tokens"] == 20
    assert last["usage"]["completion_tokens"] == 4


def call(number: int, arguments: str = "", name: str | None = None) -> Delta:
    part = ToolCallPart(number, arguments, f"call_{number}" if name else None, name)
    return Delta(tool_calls=(part,))


def test_a_chunk_has_one_piece_of_each_call() -> None:
    pieces = [call(0, name="a"), call(0, "{"), call(1, name="b"), call(0, "}"), call(1, "{}")]
    calls = tuple(part for piece in pieces for part in piece.tool_calls)
    (chunk,) = parsed(ChatFramer(**ABOUT).frame(Delta(tool_calls=calls)))
    told = [
        (one["index"], one["id"], one["function"])
        for one in chunk["choices"][0]["delta"]["tool_calls"]
    ]
    assert told == [
        (0, "call_0", {"name": "a", "arguments": "{}"}),
        (1, "call_1", {"name": "b", "arguments": "{}"}),
    ]
    (chunk,) = parsed(
        ChatFramer(**ABOUT).frame(
            Delta(tool_calls=(*call(0, "x").tool_calls, *call(0, "y").tool_calls))
        )
    )
    assert chunk["choices"][0]["delta"]["tool_calls"] == [
        {"index": 0, "function": {"arguments": "xy"}}
    ]


def test_response_items_open_and_close_in_order() -> None:
    framer = ResponseFramer(ResponseBody(input="q"), **ABOUT)
    stream = framer.open() + framer.frame(Delta(text="hi"))
    stream += (
        framer.frame(call(0, name="a"))
        + framer.frame(call(0, "{}"))
        + framer.frame(call(1, name="b"))
    )
    stream += framer.frame(LAST) + framer.close()
    events = parsed(stream)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    items = [
        (e["type"], e["output_index"])
        for e in events
        if e["type"].startswith("response.output_item")
    ]
    assert items == [
        (f"response.output_item.{change}", index)
        for index in range(3)
        for change in ("added", "done")
    ]
    output = events[-1]["response"]["output"]
    assert [item["type"] for item in output] == ["message", "function_call", "function_call"]
    assert output[1]["arguments"] == "{}"
    assert events[-1]["response"]["usage"]["total_tokens"] == 5


def test_pieces_of_two_calls_in_one_delta_are_two_calls_in_every_api() -> None:
    pieces = [call(0, name="a"), call(0, "{"), call(1, name="b"), call(0, "}"), call(1, "{}")]
    delta = Delta(tool_calls=tuple(part for piece in pieces for part in piece.tool_calls))
    framer: Framer = ResponseFramer(ResponseBody(input="q"), **ABOUT)
    stream = framer.open() + framer.frame(delta) + framer.frame(LAST) + framer.close()
    output = parsed(stream)[-1]["response"]["output"]
    assert [(item["name"], item["arguments"]) for item in output] == [("a", "{}"), ("b", "{}")]
    framer = MessageFramer(id="x", model="m")
    stream = framer.open() + framer.frame(delta) + framer.frame(LAST) + framer.close()
    told = [e for e in parsed(stream) if e["type"].startswith("content_block_")]
    assert [e.get("content_block", {}).get("name") for e in told[::3]] == ["a", "b"]
    assert [e["delta"]["partial_json"] for e in told[1::3]] == ["{}", "{}"]


@pytest.mark.parametrize("summary", [None, "auto"])
def test_a_response_has_the_reasoning_as_an_item(summary: str | None) -> None:
    body = ResponseBody(input="q", reasoning=Reasoning(summary=summary))
    framer = ResponseFramer(body, **ABOUT)
    stream = framer.open()
    for delta in (Delta(reasoning="h"), Delta(reasoning="m"), Delta(text="a"), call(0, name="f")):
        stream += framer.frame(delta)
    usage = Usage(3, 2, 1, 2)
    stream += framer.frame(Delta(finish_reason="tool_calls", usage=usage)) + framer.close()
    events = parsed(stream)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert events[0]["response"]["output"] == []
    kind = "reasoning_summary_" if summary else "reasoning_"
    part = "reasoning_summary_part" if summary else "content_part"
    assert [event["type"].removeprefix("response.") for event in events[2:9]] == [
        "output_item.added",
        f"{part}.added",
        f"{kind}text.delta",
        f"{kind}text.delta",
        f"{kind}text.done",
        f"{part}.done",
        "output_item.done",
    ]
    assert all(event["output_index"] == 0 for event in events[2:9])
    thought, message, called = events[-1]["response"]["output"]
    assert thought["type"] == "reasoning"
    if summary:
        assert thought["summary"] == [{"type": "summary_text", "text": "hm"}]
    else:
        assert thought["content"] == [{"type": "reasoning_text", "text": "hm"}]
        assert thought["summary"] == []
    assert (message["content"][0]["text"], called["name"]) == ("a", "f")
    details = events[-1]["response"]["usage"]["output_tokens_details"]
    assert details == {"reasoning_tokens": 2}


def test_a_responses_log_probabilities_come_with_the_text_that_follows() -> None:
    framer = ResponseFramer(ResponseBody(input="q"), **ABOUT)
    first, second = (
        TokenLogprob(text, -1.0, ((text, -1.0), ("x", -2.0))) for text in ("\u00e9", "b")
    )
    stream = framer.open() + framer.frame(Delta(logprobs=(first,)))
    stream += framer.frame(Delta(text="\u00e9b", logprobs=(second,))) + framer.close()
    events = parsed(stream)
    (sent,) = [event["logprobs"] for event in events if event["type"].endswith("text.delta")]
    assert [token["token"] for token in sent] == ["\u00e9", "b"]
    assert sent[0]["top_logprobs"] == [
        {"token": "\u00e9", "logprob": -1.0},
        {"token": "x", "logprob": -2.0},
    ]
    (item,) = events[-1]["response"]["output"]
    assert item["content"][0]["logprobs"][0]["bytes"] == [195, 169]
    assert len(item["content"][0]["logprobs"]) == 2


def test_a_second_message_of_a_response_has_the_log_probabilities_of_its_own_text() -> None:
    framer = ResponseFramer(ResponseBody(input="q"), **ABOUT)
    stream = framer.open()
    for text in "ab":
        stream += framer.frame(Delta(text=text, logprobs=(TokenLogprob(text, -1.0),)))
        call = ToolCallPart(0, "{}", id=f"call_{text}", name="f")
        stream += framer.frame(Delta(tool_calls=(call,)))
    output = parsed(stream + framer.close())[-1]["response"]["output"]
    parts = [item["content"][0] for item in output if item["type"] == "message"]
    assert [[one["token"] for one in part["logprobs"]] for part in parts] == [["a"], ["b"]]


@pytest.mark.parametrize(
    ("reason", "why"), [("length", "max_output_tokens"), ("content_filter", "content_filter")]
)
def test_a_response_tells_why_it_is_incomplete(reason: Any, why: str) -> None:
    body = ResponseBody(input="q")
    about: Any = {"id": "1", "created": 1, "model": "m"}
    deltas = [Delta(text="a"), Delta(finish_reason=reason, usage=Usage(1, 1))]
    framer = ResponseFramer(body, **about)
    stream = framer.open() + b"".join(map(framer.frame, deltas)) + framer.close()
    for made in (response_body(Answers(deltas), body, **about), parsed(stream)[-1]["response"]):
        assert (made["status"], made["incomplete_details"]) == ("incomplete", {"reason": why})


def test_a_message_has_the_reasoning_as_a_block() -> None:
    framer = MessageFramer(id="x", model="m")
    stream = framer.open()
    for delta in (Delta(reasoning="h"), Delta(reasoning="m"), Delta(text="a"), LAST):
        stream += framer.frame(delta)
    told = [e for e in parsed(stream + framer.close()) if "index" in e]
    start, first, second, signature, stop, text, *_ = told
    empty = {"type": "thinking", "thinking": "", "signature": ""}
    assert (start["content_block"], start["index"]) == (empty, 0)
    assert first["delta"] == {"type": "thinking_delta", "thinking": "h"}
    assert second["delta"] == {"type": "thinking_delta", "thinking": "m"}
    assert signature["delta"]["type"] == "signature_delta"
    assert stop["type"] == "content_block_stop"
    assert (text["content_block"]["type"], text["index"]) == ("text", 1)
    answers = Answers()
    for delta in (Delta(reasoning="hm"), Delta(text="a"), LAST):
        answers.add(delta)
    thought, said = message_body(answers, id="x", model="m")["content"]
    signed = signature["delta"]["signature"]
    assert thought == {"type": "thinking", "thinking": "hm", "signature": signed}
    assert said["text"] == "a"


def test_the_usage_tells_the_tokens_of_the_reasoning_where_they_were_counted() -> None:
    assert usage_body(Usage(1, 3, 0, 2))["completion_tokens_details"] == {"reasoning_tokens": 2}
    assert "completion_tokens_details" not in usage_body(Usage(1, 3))


def test_message_blocks_open_and_close_in_order() -> None:
    framer = MessageFramer(id="x", model="m")
    stream = framer.open() + framer.frame(Delta(text="hi")) + framer.frame(call(0, name="a"))
    stream += framer.frame(call(0, "{}")) + framer.frame(LAST) + framer.close()
    kinds = [(event["type"], event.get("index")) for event in parsed(stream)]
    assert kinds == [
        ("message_start", None),
        ("content_block_start", 0),
        ("content_block_delta", 0),
        ("content_block_stop", 0),
        ("content_block_start", 1),
        ("content_block_delta", 1),
        ("content_block_stop", 1),
        ("message_delta", None),
        ("message_stop", None),
    ]
    assert parsed(stream)[-2]["usage"]["input_tokens"] == 2


THOUGHT_AND_CALLED = [
    Delta(reasoning="h"),
    Delta(text="a", logprobs=(TokenLogprob("a", -1.0, (("a", -1.0),)),)),
    Delta(tool_calls=(ToolCallPart(0, "{}", "call_0", "f"),)),
    Delta(finish_reason="tool_calls", usage=Usage(3, 3, 1, 1)),
]


@pytest.mark.parametrize("summary", [None, "auto"])
def test_events_of_a_response_are_openais(summary: str | None) -> None:
    pydantic = pytest.importorskip("pydantic")
    types = pytest.importorskip("openai.types.responses")
    known = pydantic.TypeAdapter(types.ResponseStreamEvent)
    framer = ResponseFramer(ResponseBody(input="q", reasoning=Reasoning(summary=summary)), **ABOUT)
    stream = framer.open() + b"".join(map(framer.frame, THOUGHT_AND_CALLED)) + framer.close()
    for event in parsed(stream):
        made = known.validate_python(event)
        assert made.type == event["type"]
        assert not made.model_extra or not set(made.model_extra) - {"name"}


def test_events_of_a_message_are_anthropics() -> None:
    pydantic = pytest.importorskip("pydantic")
    types = pytest.importorskip("anthropic.types")
    known = pydantic.TypeAdapter(types.RawMessageStreamEvent)
    framer = MessageFramer(id="x", model="m")
    stream = framer.open() + b"".join(map(framer.frame, THOUGHT_AND_CALLED)) + framer.close()
    for event in parsed(stream):
        made = known.validate_python(event)
        assert (made.type, made.model_extra) == (event["type"], made.model_extra and {})
