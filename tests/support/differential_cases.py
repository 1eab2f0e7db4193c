"""The request forms of the differential test, made from tables: each parameter with each of its
values on a plain request, some together, whole and streamed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from penstock import demo

TICKET = "My Solara 77 arrived broken and nobody answers. I want my money back!"
USER = [{"role": "user", "content": TICKET}]
TOOL = {
    "type": "function",
    "function": {
        "name": "refund",
        "description": "Pays money back.",
        "parameters": {
            "type": "object",
            "properties": {"sure": {"type": "boolean"}},
            "required": ["sure"],
        },
    },
}
NAMED = {"type": "function", "function": {"name": "refund"}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "ticket", "schema": demo.SCHEMA}}
CHAT: dict[str, Any] = {"messages": USER, "temperature": 0, "max_tokens": 8}
TEXT: dict[str, Any] = {"prompt": TICKET, "temperature": 0, "max_tokens": 8}

NUMBER: list[Any] = [None, "warm", [], {}, True, "1"]
"""What no number is."""
SAMPLING: dict[str, list[Any]] = {
    "temperature": [0, 1, 0.5, 2, -1, 2.5, *NUMBER],
    "top_p": [1, 0.5, 0, 1.5, -0.1, *NUMBER],
    "top_k": [0, -1, 5, 5.0, -2, 1.5, *NUMBER],
    "min_p": [0, 0.1, 1, 1.1, -0.1, *NUMBER],
    "seed": [0, 7, 7.0, -1, 2**40, 2**64, 1.5, *NUMBER],
    "n": [1, 2, 2.0, 0, -1, 1.5, *NUMBER],
    "max_tokens": [1, 3, 3.0, 0, -1, 4000, 5000, 1.5, *NUMBER],
    "min_tokens": [0, 4, 4.0, 9, -1, *NUMBER],
    "stop": [[], "e", ["e", "a"], "", [""], ["never said"], 5, [5], None],
    "stop_token_ids": [[], [5, 300], [-1], [10**6], ["a"], 5, None],
    "presence_penalty": [0, 0.5, -2, 2, 2.1, *NUMBER],
    "frequency_penalty": [0, 0.5, -2, 2, -2.1, *NUMBER],
    "repetition_penalty": [1, 1.2, 0.8, 0, -1, *NUMBER],
    "ignore_eos": [False, True, None, 5, "true"],
    "logit_bias": [{}, {"5": 100}, {"5": -100, "300": 2}, {"x": 1}, {"999999": 1}, 5, None],
    "allowed_token_ids": [[5, 300, 301], [10**6], ["a"], None],
    "bad_words": [[], ["refund"], [""], 5],
    "prompt_logprobs": [0, 1, 3, -2, "x", None],
    "skip_special_tokens": [True, False, 5],
    "spaces_between_special_tokens": [True, False],
    "include_stop_str_in_output": [False, True],
    "truncate_prompt_tokens": [5, -1, 0, -2, 4000, None],
    "truncation_side": ["left", "right", "up", None],
    "cache_salt": ["salt", "", 5, None],
    "return_token_ids": [False, True, None],
    "return_tokens_as_token_ids": [False, True, None],
    "vllm_xargs": [{}, {"a": 1}, {"a": [1, "b"]}, {"a": {}}, 5, None],
    "kv_transfer_params": [None, {}],
    "priority": [0, 3, -3, "high"],
    "user": ["me", None, 5],
    "stream": [False, None, "x"],
    "stream_options": [None, {"include_usage": True}],
    "response_format": [
        None,
        {"type": "text"},
        {"type": "json_object"},
        {"type": "yaml"},
        {"type": "json_schema"},
        SCHEMA,
        5,
    ],
    "structured_outputs": [
        None,
        {"regex": "(refund|repair) at once"},
        {"json": {"type": "object", "properties": {"a": {"type": "boolean"}}}},
        {"choice": ["yes", "no"]},
        {"grammar": 'root ::= "yes" | "no"'},
        {"json_object": True},
        {"regex": "a", "choice": ["b"]},
        {"regex": "("},
        {},
    ],
    "repetition_detection": [None, {"max_pattern_size": 2, "min_pattern_size": 1, "min_count": 2}],
    "stream_interval": [None, 1, 4],
    "length_penalty": [1.0],
    "use_beam_search": [False],
    "unheard_of": [None],
}
OF_CHAT: dict[str, list[Any]] = {
    "max_completion_tokens": [1, 3, 0, -1, None, "x"],
    "logprobs": [True, False, None, 5],
    "top_logprobs": [0, 2, None],
    "tools": [None, [TOOL], "x", [{}]],
    "tool_choice": [None, "none", "auto", "required", "x"],
    "parallel_tool_calls": [True, False, None],
    "reasoning_effort": [None, "low", "none", "much"],
    "documents": [None, [{"title": "a", "text": "b"}], "x"],
    "chat_template_kwargs": [None, {}, {"a": 1}, "x"],
    "chat_template": [None, "{% for m in messages %}{{ m.content }}{% endfor %}"],
    "add_generation_prompt": [True, False, None],
    "continue_final_message": [False, True],
    "echo": [False],
    "add_special_tokens": [False],
    "mm_processor_kwargs": [None, {}, {"a": 1}],
    "include_reasoning": [True],
    "store": [None, False],
    "metadata": [None, {"a": "b"}],
    "service_tier": [None, "auto"],
    "messages": [
        [],
        "hello",
        [{}],
        [{"role": "user"}],
        [{"role": "user", "content": ""}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}],
        [{"role": "user", "content": [{"type": "text"}]}],
        [{"role": "nobody", "content": "Hello"}],
        [{"role": "system", "content": "Keys: order"}, *USER],
        [{"role": "developer", "content": "Keys: order"}, *USER],
        [{"role": "developer", "content": "Keys: order " * 400}, *USER],
        [*USER, {"role": "assistant", "content": "{"}],
        [*USER, {"role": "assistant", "content": None}, *USER],
        [{"role": "user", "content": "word " * 5000}],
        [{"role": "user", "content": "Hello", "unheard_of": 1}],
        [{"role": "user", "content": [{"type": "text", "text": "Hello", "unheard_of": 1}]}],
        [{"role": "user", "content": [{"type": "text", "text": "Hello", "cache_control": {}}]}],
    ],
}
TOGETHER_CHAT: list[dict[str, Any]] = [
    {"logprobs": True, "top_logprobs": 0},
    {"logprobs": True, "top_logprobs": 3},
    {"logprobs": True, "top_logprobs": 30},
    {"logprobs": True, "top_logprobs": -1},
    {"logprobs": True, "return_tokens_as_token_ids": True, "top_logprobs": 1},
    {"logprobs": True, "logprob_token_ids": [5, 300]},
    {"n": 2, "temperature": 1, "seed": 3},
    {"n": 2},
    {"temperature": 1, "seed": 3, "top_k": 4, "top_p": 0.9},
    {"stop": ["e"], "include_stop_str_in_output": True},
    {"tools": [TOOL], "tool_choice": "auto", "max_tokens": 60},
    {"tools": [TOOL], "tool_choice": "required", "max_tokens": 60},
    {"tools": [TOOL], "tool_choice": NAMED, "max_tokens": 60},
    {"tools": [TOOL], "tool_choice": "none"},
    {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 60},
    {"tools": [], "tool_choice": "none"},
    {"max_tokens": 5, "max_completion_tokens": 3},
    {"ignore_eos": True, "max_tokens": 60},
    {"min_tokens": 8, "stop": ["a"]},
    {"response_format": SCHEMA, "max_tokens": 90},
    {"response_format": {"type": "json_object"}, "max_tokens": 90},
    {"response_format": SCHEMA, "structured_outputs": {"regex": "a"}},
    {"bad_words": ["order", "category"]},
    {"logit_bias": {"5": 5.5}, "presence_penalty": 1},
    {"prompt_logprobs": 1, "logprobs": True},
    {"truncate_prompt_tokens": 6, "truncation_side": "left"},
    {"truncate_prompt_tokens": 6, "truncation_side": "right"},
    {"cache_salt": "a", "priority": 1},
    {"skip_special_tokens": False, "ignore_eos": True, "max_tokens": 70},
    {"tools": [{**TOOL, "unheard_of": 1}], "tool_choice": "auto"},
    {"tools": [{"type": "function", "function": {"name": "refund", "unheard_of": 1}}]},
    {"response_format": {"type": "json_object", "unheard_of": 1}},
]
OF_TEXT: dict[str, list[Any]] = {
    "prompt": ["", "Hello", ["Hello", "Bye"], [5, 6, 7], [[5, 6], [7]], [], [[]], 5, {}, [1, "a"]],
    "logprobs": [0, 1, 3, None, -1, 30, "x"],
    "echo": [False, True, None],
    "suffix": [None, "", "x"],
    "best_of": [None, 1],
    "add_special_tokens": [True, False],
}
TOGETHER_TEXT: list[dict[str, Any]] = [
    {"echo": True, "logprobs": 1},
    {"echo": True, "logprobs": 2, "max_tokens": 0},
    {"echo": True, "max_tokens": 0},
    {"echo": True, "logprobs": 0, "prompt": [5, 6, 7]},
    {"echo": True, "prompt": ["a", "b"], "n": 2, "temperature": 1, "seed": 4},
    {"prompt_logprobs": 1, "logprobs": 1},
    {"prompt_logprobs": 0, "max_tokens": 0},
    {"n": 2, "temperature": 1, "seed": 4, "logprobs": 1},
    {"stop": ["e", "n"], "logprobs": 1},
    {"return_tokens_as_token_ids": True, "logprobs": 1},
    {"logprob_token_ids": [5, 300], "logprobs": 1},
    {"prompt": [1, 10**9]},
    {"prompt": "word " * 5000},
    {"truncate_prompt_tokens": 3, "echo": True},
]
STREAMED = (
    *("n", "stop", "max_tokens", "logprobs", "seed", "echo", "min_tokens", "messages"),
    "return_token_ids",
)
"""The parameters of the tables whose values are asked for in streams too."""


Case = tuple[str, dict[str, Any], bool]
"""A path under /v1, a body, and whether it is streamed."""


def cases() -> Iterator[Case]:
    for path, base, tables, together in (
        ("chat/completions", CHAT, (SAMPLING, OF_CHAT), TOGETHER_CHAT),
        ("completions", TEXT, (SAMPLING, OF_TEXT), TOGETHER_TEXT),
    ):
        for table in tables:
            for name, values in table.items():
                for value in values:
                    yield path, {**base, name: value}, False
                    if name in STREAMED:
                        yield path, {**base, name: value}, True
        for given in together:
            yield path, {**base, **given}, False
            yield path, {**base, **given}, True
    yield from others()


def others() -> Iterator[Case]:
    """The forms of the endpoints that have few parameters."""
    tables: dict[str, tuple[dict[str, Any], dict[str, list[Any]]]] = {
        "responses": (
            {"input": TICKET, "temperature": 0, "max_output_tokens": 8},
            {
                "temperature": [0, 1.5, 3, None],
                "max_output_tokens": [1, 3, 0, -1, None],
                "instructions": [None, "Keys: order"],
                "input": ["", USER, [], 5],
                "top_p": [0.5, 2],
                "top_k": [3, 0, None],
                "min_p": [0.1, 2],
                "seed": [7, 2**64],
                "stop": ["e", [], None],
                "stop_token_ids": [[5, 300], [-1]],
                "presence_penalty": [0.5, 3],
                "frequency_penalty": [0.5, "x"],
                "repetition_penalty": [1.2, 0],
                "ignore_eos": [True],
                "logit_bias": [{"5": 100}, {"x": 1}],
                "skip_special_tokens": [False],
                "include_stop_str_in_output": [True],
                "cache_salt": ["a", ""],
                "priority": [1],
                "vllm_xargs": [{"a": 1}],
                "structured_outputs": [{"regex": "(refund|repair) at once"}],
                "tools": [None, [], [{"type": "custom", "name": "say"}]],
                "stream": [None],
                "text": [None, {"format": {"type": "text"}}],
            },
        ),
        "messages": (
            {"messages": USER, "max_tokens": 8, "temperature": 0},
            {
                "temperature": [0, 1, None],
                "max_tokens": [1, 0, -1, None, "x"],
                "system": ["Keys: order", [{"type": "text", "text": "Keys: order"}], 5],
                "stop_sequences": [["e"], [], None],
                "top_k": [3, None],
                "top_p": [0.5, None],
                "messages": [
                    [],
                    "x",
                    [{"role": "user", "content": [{"type": "text", "text": "a"}]}],
                ],
                "metadata": [None, {"user_id": "a"}],
                "cache_salt": ["a", None],
                "vllm_xargs": [{"a": 1}, {"a": {}}, None],
                "watermarking": [False, None],
                "kv_transfer_params": [None],
                "ec_transfer_params": [None],
                "chat_template_kwargs": [{"a": 1}],
                "output_config": [
                    {"format": {"type": "json_schema", "schema": demo.SCHEMA}},
                    {"effort": "low"},
                ],
                "tool_choice": [None, {"type": "auto"}, {"type": "none"}, {"type": "any"}],
            },
        ),
        "../tokenize": (
            {"prompt": TICKET},
            {
                "prompt": ["", "Hello", 5, None],
                "add_special_tokens": [True, False],
                "return_token_strs": [True, False, None],
            },
        ),
        "../detokenize": (
            {"tokens": [5, 6, 7]},
            {"tokens": [[], [300, 301], [1, 300, 2], [-1], [10**7], ["a"], None, 5]},
        ),
    }
    for path, (base, table) in tables.items():
        for name, values in table.items():
            for value in values:
                yield path, {**base, name: value}, False
    yield "../tokenize", {"messages": USER}, False
    yield "../tokenize", {"messages": USER, "add_generation_prompt": False}, False
    yield "models", {}, False


ORDERS = ["My Solara 77 arrived broken.", "Where is my invoice?"]
EMBED: dict[str, Any] = {"input": ORDERS[0]}
SCORE: dict[str, Any] = {"text_1": ORDERS[0], "text_2": ORDERS}
RERANK: dict[str, Any] = {"query": ORDERS[0], "documents": ORDERS}
_OF_TEXTS: list[Any] = ["Hello", ["Hello", "Bye"], "", [], [""], 5, [5, "a"], {}, None]
_OF_POOLING: dict[str, list[Any]] = {
    "user": ["me", None, 5],
    "truncate_prompt_tokens": [None],
    "truncation_side": [None],
    "padding": [None],
    "priority": [None, 0],
    "use_activation": [None],
    "cache_salt": [None],
}
_OF_PAIRS: dict[str, list[Any]] = {
    **_OF_POOLING,
    "max_tokens_per_query": [0],
    "max_tokens_per_doc": [0],
    "instruction": [None],
    "chat_template_kwargs": [None],
}
_VECTORS: dict[str, list[Any]] = {
    **_OF_POOLING,
    "input": [*_OF_TEXTS, [5, 6, 7], [[5, 6], [7]], [10**7], [-1]],
    "encoding_format": ["float", "base64", "hex", None],
    "dimensions": [None],
    "add_special_tokens": [True],
    "embed_dtype": ["float32"],
    "endianness": ["native", "little"],
}
POOLING: dict[str, dict[str, tuple[dict[str, Any], dict[str, list[Any]]]]] = {
    "embed": {
        "embeddings": (EMBED, _VECTORS),
        "../pooling": (EMBED, _VECTORS),
        "score": (
            SCORE,
            {**_OF_PAIRS, "text_1": [*_OF_TEXTS, ORDERS], "text_2": [*_OF_TEXTS, [*ORDERS, "x"]]},
        ),
        "rerank": (
            RERANK,
            {
                **_OF_PAIRS,
                "query": ["Hello", "", 5, None],
                "documents": _OF_TEXTS,
                "top_n": [0, 1, 5, -1, None, "x"],
            },
        ),
        "../tokenize": (
            {"prompt": TICKET},
            {"prompt": ["", "Hello", 5], "add_special_tokens": [True, False]},
        ),
        "../detokenize": ({"tokens": [5, 6, 7]}, {"tokens": [[], [300, 301], [-1], "x"]}),
    },
    "classify": {
        "../classify": (
            EMBED,
            {**_OF_POOLING, "input": _OF_TEXTS, "add_special_tokens": [True]},
        ),
        "../pooling": (EMBED, {"input": ["Hello", ORDERS], "encoding_format": ["float"]}),
    },
    "cross-encoder": {
        "score": (SCORE, {"text_1": ["Hello", ORDERS], "text_2": ["Hello", *_OF_TEXTS[2:]]}),
        "../score": (SCORE, {"text_1": ["Hello"]}),
        "rerank": (RERANK, {"top_n": [0, 1, None], "documents": _OF_TEXTS[:3]}),
        "../rerank": (RERANK, {"top_n": [1]}),
        "../v2/rerank": (RERANK, {"top_n": [1]}),
    },
}
"""Kind of model → path → a plain body, and each parameter's values."""
SCORED: list[dict[str, Any]] = [
    {"queries": ORDERS[0], "documents": ORDERS},
    {"queries": ORDERS[0], "items": ORDERS},
    {"data_1": ORDERS, "data_2": ORDERS},
]
"""Other names for the two sides of a score."""


def pooling_cases(kind: str) -> Iterator[Case]:
    """The forms for a model that makes vectors (`embed`), classes or scores of pairs."""
    for path, (base, table) in POOLING[kind].items():
        yield path, base, False
        for name, values in table.items():
            for value in values:
                yield path, {**base, name: value}, False
        if path == "score":
            for body in SCORED:
                yield path, body, False
