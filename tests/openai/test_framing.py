from __future__ import annotations

import json
from typing import Any

import pytest

from penstock.errors import EngineError
from penstock.openai.framing import ChatFramer, CompletionFramer, Framer
from penstock.openai.messages_api import MessageFramer
from penstock.openai.responses import Answers, chat_completion
from penstock.openai.responses_api import ResponseBody, ResponseFramer
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
    assert thought["choices"][0]["delta"] == {"reasoning": "hm"}
    answers = Answers()
    for delta in (Delta(reasoning="h"), Delta(reasoning="m"), Delta(text="a"), LAST):
        answers.add(delta)
    message = chat_completion(answers, **ABOUT)["choices"][0]["message"]
    assert message == {"role": "assistant", "reasoning": "hm", "content": "a"}


def test_a_delta_without_text_makes_no_chunk() -> None:
    assert ChatFramer(**ABOUT).frame(Delta(token_ids=(1,))) == b""
    assert CompletionFramer(**ABOUT).frame(Delta(token_ids=(1,))) == b""


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
