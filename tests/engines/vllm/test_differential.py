"""vLLM's own server beside ours around one engine: some 1,100 request forms get the same status
and the same JSON, but for ids, times and the differences that docs/compatibility.md lists.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from differential_cases import CHAT, POOLING, TEXT, Case, cases, pooling_cases
from penstock.demo import model_path
from penstock.engines.vllm.engine import VLLMEngine
from torch_models import classifier
from two_servers import meaning, two_servers

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.asyncio(loop_scope="module"),
]

OPTIONS = {
    "max_num_seqs": 16,
    "scheduling_policy": "priority",
    "tool_call_parser": "hermes",
    "enable_auto_tool_choice": True,
    "exclude_tools_when_tool_choice_none": True,  # as ours does
}
DOCS = Path(__file__).parents[3] / "docs" / "compatibility.md"
_OTHER_EACH_TIME = frozenset({"id", "created", "created_at", "model", "system_fingerprint"})
_OURS_ALONE = frozenset({"text"})
_VLLMS_ALONE = frozenset(
    {"created_cache_tokens", "cache_write_tokens", "tool_output_tokens", "background"}
    | {"frequency_penalty", "presence_penalty", "service_tier", "truncation"}
)
_OF_RESPONSES = frozenset({"status", "tool_choice", "top_p", "max_output_tokens", "store"})
_OF_MODELS = frozenset(
    {"root", "permission", "owned_by"}
    | {"engine", "state", "reason", "input_modalities", "metadata"}
)

Asked = dict[str, Any]
"""What a body has that the plain request of its path has not."""


def _nulls(asked: Asked) -> bool:
    return None in asked.values()


_NUMBERS = {"temperature", "top_p", "top_k", "min_p", "seed", "n", "max_tokens", "min_tokens"} | {
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
}


def _booleans(asked: Asked) -> bool:
    return any(asked.get(name) is True for name in _NUMBERS)


def _texts(asked: Asked) -> bool:
    return asked.get("ignore_eos") == "true" or any(asked.get(name) == "1" for name in _NUMBERS)


def _lax_messages(asked: Asked) -> bool:
    return asked.get("messages") in ([{"role": "user"}], [{"role": "nobody", "content": "Hello"}])


def _unheard_of(asked: Asked) -> bool:
    return '"unheard_of": 1' in json.dumps(asked)


STATUS: dict[str, tuple[int, int, Callable[[Asked], bool]]] = {
    "`null` is the default of every parameter; vLLM refuses some.": (200, 400, _nulls),
    "`true` and `false` are no numbers; vLLM reads them as 1 and 0.": (400, 200, _booleans),
    '`"1"` is no number and `"true"` no truth value; vLLM reads them as such.': (400, 200, _texts),
    "Messages need a known role and a content; vLLM lets its template decide.": (
        400,
        200,
        _lax_messages,
    ),
    "Empty `tools` and an empty `suffix` or `structured_outputs` ask for nothing; vLLM refuses"
    " them.": (
        200,
        400,
        lambda asked: (
            asked.get("tools") == []
            or asked.get("suffix") == ""
            or asked.get("structured_outputs") == {}
        ),
    ),
    '`tool_choice: "auto"` without tools asks for nothing; vLLM refuses it.': (
        200,
        400,
        lambda asked: asked.get("tool_choice") == "auto" and "tools" not in asked,
    ),
    "`tool_choice: any` of a message without tools is a 400, as `required` is in a chat; vLLM"
    " ignores it.": (400, 200, lambda asked: asked.get("tool_choice") == {"type": "any"}),
    "`reasoning_effort` is any text that the chat template knows; vLLM has a list.": (
        200,
        400,
        lambda asked: asked.get("reasoning_effort") == "much",
    ),
    "`max_tokens: 0` gives a prompt's log probabilities alone; vLLM allows it with `echo` only.": (
        200,
        400,
        lambda asked: asked.get("max_tokens") == 0 and "prompt_logprobs" in asked,
    ),
    "`max_tokens` beyond the context is cut to what is left of it; vLLM refuses it.": (
        200,
        400,
        lambda asked: asked.get("max_tokens") == 5000,
    ),
    "`continue_final_message` needs nothing beside it; vLLM wants"
    " `add_generation_prompt: false`.": (
        200,
        400,
        lambda asked: (
            asked.get("continue_final_message") is True and "add_generation_prompt" not in asked
        ),
    ),
    "Unknown keys inside messages, tools and formats are a 400; vLLM drops them.": (
        400,
        200,
        _unheard_of,
    ),
    "A chat template in a request is a 400 unless the server's `trust_request_chat_template` is"
    " set.": (400, 200, lambda asked: "chat_template" in asked),
    "An empty `input` is a 400 for vectors and classes; vLLM answers where its tokenizer adds"
    " tokens to an empty text.": (400, 200, lambda asked: asked.get("input") in ("", [], [""])),
    "Token ids beyond the vocabulary are a 400 in `/detokenize`; vLLM drops them.": (
        400,
        200,
        lambda asked: asked.get("tokens") == [10**7],
    ),
}
"""Each difference as the documentation has it → our status, vLLM's, and for which requests."""

FIELDS: dict[str, Callable[[Asked, str], bool]] = {
    "`logprobs: 0` gives no `top_logprobs` in a completion, as at OpenAI; vLLM gives the chosen"
    " token.": lambda asked, place: asked.get("logprobs") == 0 and place.endswith(".top_logprobs"),
    "`echo` with `logprobs` gives no `prompt_logprobs` unless these are asked for too.": (
        lambda asked, place: "echo" in asked and place.endswith(".prompt_logprobs")
    ),
    "`echo` with `max_tokens: 0` counts no token of an answer, and ends by `length`; vLLM counts"
    " the one that it drops.": lambda asked, place: (
        asked.get("max_tokens") == 0
        and place.endswith(("reason", "completion_tokens", "total_tokens", ".usage[]"))
    ),
    "An answer that the limit cuts behind a call ends by `length`; vLLM says `tool_calls`, but for"
    " streams.": lambda asked, place: (
        asked.get("tool_choice") == "auto" and place.endswith(".finish_reason")
    ),
    "With `add_generation_prompt: false` vLLM names the last message's role in its answer.": (
        lambda asked, place: asked.get("add_generation_prompt") is False and place.endswith(".role")
    ),
    "With `echo`, vLLM's streams carry the prompt's token ids unasked.": lambda asked, place: (
        "echo" in asked and place == ".prompt_ids"
    ),
    "Custom tools of responses are shown to the model; vLLM drops them.": lambda asked, place: (
        any(tool.get("type") == "custom" for tool in asked.get("tools") or ())
        and place.startswith(".usage.")
    ),
    "`usage` of vectors, scores and classes has no `completion_tokens`; vLLM's are 0.": (
        lambda asked, place: (
            bool(asked.keys() & {"input", "text_1", "queries", "data_1"})
            and place == ".usage.completion_tokens"
        )
    ),
    "Without `seed`, sampled answers differ each time.": lambda asked, place: (
        "seed" not in asked and asked.get("temperature", 0) != 0
    ),
    "`cached_tokens` depends on what came before.": lambda _, place: place.endswith(
        "cached_tokens"
    ),
}
"""Each difference as the documentation has it → for which requests, at which places."""
IN_GENERAL = (
    "A key whose value is `null` or empty may be absent.",
    "`usage` has no counts of cache writes and of tool output.",
    "Responses echo fewer of the request's parameters, and their `status` and `top_p` are what"
    " they were.",
    "The texts of errors are other ones; every refusal names its parameter.",
    "The list of models has adapters before they are loaded, and facts of ours, but no `root` and"
    " `permission`.",
    "With `tool_choice: none` the model sees no tools, on every engine; vLLM shows them unless"
    " `exclude_tools_when_tool_choice_none` is set (false shows them here too).",
)
"""Differences that the comparison leaves out everywhere."""


def asked_of(path: str, body: dict[str, Any]) -> Asked:
    base = {"chat/completions": CHAT, "completions": TEXT}.get(path, {})
    return {
        name: value
        for name, value in body.items()
        if name not in base or base[name] != value or type(base[name]) is not type(value)
    }


def plain(value: Any, path: str) -> Any:
    """A body without what differs each time."""
    if isinstance(value, dict):
        if "cache_read_input_tokens" in value:  # Anthropic counts them beside its input tokens
            read = value["cache_read_input_tokens"] or 0
            value = {**value, "input_tokens": value["input_tokens"] + read}
            del value["cache_read_input_tokens"]
        left_out = _OTHER_EACH_TIME | _VLLMS_ALONE
        if path == "responses":
            left_out |= _OF_RESPONSES | ({"text"} if "object" in value else set())
        if path == "models":
            left_out |= _OF_MODELS
        return {
            name: plain(one, path)
            for name, one in value.items()
            if name not in left_out and one not in (None, [], {})
        }
    if isinstance(value, list):
        if path == "models":
            value = [one for one in value if not one["parent"]]
        return [plain(one, path) for one in value]
    return round(value, 3) if isinstance(value, float) else value


def differences(ours: Any, theirs: Any, place: str = "") -> Iterator[str]:
    """The places where two bodies differ."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for name in sorted(ours.keys() | theirs.keys()):
            if name in ours and name in theirs:
                yield from differences(ours[name], theirs[name], f"{place}.{name}")
            else:
                yield f"{place}.{name}"
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for one, other in zip(ours, theirs, strict=True):
            yield from differences(one, other, f"{place}[]")
    elif ours != theirs:
        yield place


def undocumented(case: Case, replies: list[Any]) -> Iterator[str]:
    path, body, stream = case
    ours, theirs = replies
    asked = asked_of(path, body)
    statuses = (ours.status_code, theirs.status_code)
    if stream and theirs.text.startswith('data: {"error"'):  # found when the stream had begun
        statuses = (statuses[0], 400)
    if statuses[0] != statuses[1]:
        if not any(
            statuses == (here, there) and applies(asked) for here, there, applies in STATUS.values()
        ):
            yield f"{path} {json.dumps(asked)[:200]} stream={stream}: {statuses} {ours.text[:200]}"
        return
    if statuses[0] != 200:
        return
    if stream:
        found = differences(plain(meaning(ours, True), path), plain(meaning(theirs, True), path))
    else:
        found = differences(plain(ours.json(), path), plain(theirs.json(), path))
    for place in sorted(set(found)):
        if not any(applies(asked, place) for applies in FIELDS.values()):
            yield f"{path} {json.dumps(asked)[:200]} stream={stream}: {place}"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def servers():
    engine = VLLMEngine("demo", engine_kwargs=OPTIONS)
    await engine.start()
    async with two_servers(engine, OPTIONS) as made:
        yield made
    await engine.stop()


PATHS = sorted({(path, stream) for path, _, stream in cases()})


@pytest.mark.parametrize(("path", "stream"), PATHS)
async def test_both_servers_answer_the_same(servers, path, stream):
    found: list[str] = []
    for case in cases():
        if (case[0], case[2]) == (path, stream):
            found += undocumented(case, await servers.ask(path, case[1], stream))
    assert found == []


POOLS = {
    "runner": "pooling",
    "dtype": "float32",
    "enforce_eager": True,
    "kv_cache_memory_bytes": 64 << 20,
}


@pytest.mark.parametrize("kind", POOLING)
async def test_both_servers_tell_the_same_of_texts(tmp_path, kind):
    options, source = POOLS, str(tmp_path)
    if kind == "embed":
        options, source = {**POOLS, "convert": "embed"}, str(model_path("huggingface"))
    else:
        classifier(tmp_path, ["relevance"] if kind == "cross-encoder" else ["calm", "angry"])
    engine = VLLMEngine(source, engine_kwargs=options)
    await engine.start()
    try:
        async with two_servers(engine, options) as servers:
            found: list[str] = []
            for case in pooling_cases(kind):
                found += undocumented(case, await servers.ask(*case))
            assert found == []
    finally:
        await engine.stop()


def test_every_difference_is_documented():
    text = " ".join(DOCS.read_text(encoding="utf-8").split())
    missing = [one for one in (*STATUS, *FIELDS, *IN_GENERAL) if one not in text]
    assert missing == []
