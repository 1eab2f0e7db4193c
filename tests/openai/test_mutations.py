"""Whatever stands at a place within a body, it is taken or refused by a 400, and nothing else."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest

from penstock.openai.audio import SpeechBody
from penstock.openai.decisions.openai_form import DecisionBody
from penstock.openai.decisions.system_one import SystemOneBody
from penstock.openai.embeddings_api import EmbeddingBody
from penstock.openai.extensions import ClassifyBody, RerankBody, ScoreBody, TokenizeBody
from penstock.openai.messages_api import MessageBody
from penstock.openai.parameters.body import parse_body
from penstock.openai.requests import ChatBody, CompletionBody
from penstock.openai.responses_api import ResponseBody, items_of
from penstock.serve.api.endpoints.responses import ConversationBody

SCHEMA = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
FUNCTION = {"name": "a", "description": "d", "parameters": SCHEMA, "strict": True}
CUSTOM = {"name": "c", "format": {"type": "grammar", "grammar": {"syntax": "regex"}}}
SPOKEN: list[Any] = [
    {"role": "system", "content": "s", "name": "n"},
    {"role": "user", "content": [{"type": "text", "text": "t"}]},
    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,x"}}]},
    {"role": "assistant", "content": "c", "reasoning": "r", "tool_calls": [
        {"id": "1", "type": "function", "function": {"name": "a", "arguments": "{}"}},
        {"id": "2", "type": "custom", "custom": {"name": "c", "input": "i"}},
    ]},
    {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "r"}]},
    {"role": "assistant", "function_call": {"name": "a", "arguments": "{}"}},
    {"role": "function", "name": "a", "content": "x"},
]  # fmt: skip
ITEMS: list[Any] = [
    {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "x"}]},
    {"role": "user", "content": [{"type": "input_image", "image_url": "data:,x"}]},
    {"type": "reasoning", "id": "r", "summary": [{"type": "summary_text", "text": "s"}]},
    {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "s"}]},
    {"type": "function_call", "call_id": "1", "name": "a", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "1", "output": [{"type": "text", "text": "o"}]},
    {"type": "custom_tool_call", "call_id": "2", "name": "c", "input": "i"},
    {"type": "custom_tool_call_output", "call_id": "2", "output": "o"},
]
BLOCKS: list[Any] = [
    {"role": "user", "content": [{"type": "text", "text": "x"}]},
    {"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "u"}}]},
    {"role": "assistant", "content": [
        {"type": "thinking", "thinking": "t", "signature": "s"},
        {"type": "tool_use", "id": "1", "name": "a", "input": {"a": 1}},
    ]},
    {"role": "user", "content": [
        {"type": "tool_result", "tool_use_id": "1", "content": [{"type": "text", "text": "x"}]}
    ]},
]  # fmt: skip
CHAT = {"messages": SPOKEN[1:2]}
BODIES: list[tuple[Any, dict[str, Any]]] = [
    (ChatBody, {"messages": SPOKEN}),
    (ChatBody, {**CHAT, "functions": [FUNCTION], "function_call": {"name": "a"}}),
    (ChatBody, {
        **CHAT,
        "tools": [{"type": "function", "function": FUNCTION}, {"type": "custom", "custom": CUSTOM}],
        "tool_choice": {"type": "allowed_tools", "allowed_tools": {
            "mode": "auto", "tools": [{"type": "function", "function": {"name": "a"}}],
        }},
    }),
    (ChatBody, {
        **CHAT, "stream": True, "stream_options": {"include_usage": True}, "metadata": {"a": "b"},
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}},
        "stop": ["a"], "logit_bias": {"5": 1}, "chat_template_kwargs": {"a": 1},
    }),
    (ChatBody, {**CHAT, "structured_outputs": {"json": SCHEMA, "whitespace_pattern": None}}),
    (CompletionBody, {"prompt": ["a", "b"], "n": 2, "best_of": 2, "stop": ["a"], "logprobs": 1}),
    (CompletionBody, {"prompt": [[5, 6], [7]], "stop_token_ids": [5], "bad_words": ["a"]}),
    (ResponseBody, {"input": ITEMS, "instructions": "i", "metadata": {"a": "b"}}),
    (ResponseBody, {
        "input": "a",
        "tools": [{"type": "function", "name": "a"}, {"type": "custom", "name": "c"}],
        "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [
            {"type": "function", "name": "a"}
        ]},
        "text": {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA}},
        "reasoning": {"effort": "low", "summary": "auto"}, "include": [], "conversation": {},
    }),
    (ConversationBody, {"items": ITEMS, "metadata": {"a": "b"}}),
    (MessageBody, {
        "messages": BLOCKS, "max_tokens": 1, "system": [{"type": "text", "text": "s"}],
        "tools": [{"name": "a", "input_schema": SCHEMA, "input_examples": [{"a": 1}]}],
        "tool_choice": {"type": "tool", "name": "a"}, "thinking": {"type": "enabled"},
        "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}},
    }),
    (DecisionBody, {"input": ITEMS[:1], "questions": [
        {"type": "choice", "instructions": "i", "choices": [{"value": "a"}, {"value": "b"}]},
        {"type": "score", "instructions": "i", "levels": [{"label": "a"}, {"label": "b"}]},
    ]}),
    (SystemOneBody, {"state": {"a": 1}, "questions": {
        "q": {"type": "choice", "instructions": "i", "criteria": {"a": "b", "c": "d"}},
        "n": {"type": "noul", "instructions": "i", "criteria": {"true": "a", "false": "b"}},
    }}),
    (EmbeddingBody, {"input": [[5], [6]], "dimensions": 4}),
    (ScoreBody, {"queries": ["a"], "documents": ["b"]}),
    (RerankBody, {"query": "a", "documents": [{"text": "b"}, "c"]}),
    (ClassifyBody, {"input": ["x"], "labels": ["a", "b"]}),
    (TokenizeBody, {"messages": SPOKEN, "tools": [{"type": "function", "function": FUNCTION}]}),
    (SpeechBody, {"input": "a", "voice": {"id": "v"}}),
]  # fmt: skip
VALUES: list[Any] = [
    *(None, 5, 1.5, "", "\0", True, 10**30),
    *([], {}, [None], [5], {"a": None}),
]


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield (*place, key)
            yield from places(value[key], (*place, key))


def refusal(form: Any, body: dict[str, Any]) -> Exception | None:
    try:
        ask(form, body)
    except Exception as error:
        return error
    return None


def ask(form: Any, body: dict[str, Any]) -> None:
    made = parse_body(form, body)
    if isinstance(made, ConversationBody):
        items_of(made.items or [])
    elif hasattr(made, "requests"):
        made.requests()
    elif form is ClassifyBody:
        made.decisions()
    else:
        made.request()


@pytest.mark.parametrize(("form", "body"), BODIES)
def test_any_value_at_any_place(form: Any, body: dict[str, Any]) -> None:
    taken = 0
    for place in places(body):
        for value in VALUES:
            asked = copy.deepcopy(body)
            holder = asked
            for key in place[:-1]:
                holder = holder[key]
            holder[place[-1]] = value
            wrong = refusal(form, asked)
            assert wrong is None or getattr(wrong, "status", None) == 400, (place, value, wrong)
            taken += wrong is None
    assert taken
