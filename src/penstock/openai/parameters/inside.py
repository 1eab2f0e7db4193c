"""The keys that the objects inside a request's fields may have: messages and their parts, tools,
formats. One that is in no table is refused by its place, as an unknown parameter is.

`docs/parameters.md` is made of these tables, too. Keys of answers that clients send back with a
conversation are known, of other providers' answers as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from msgspec import Struct, field

from penstock.errors import RequestError, nearest
from penstock.openai.parameters.table import of_form


class Shape(Struct, frozen=True):
    """What is known of an object. `keys`: what is honoured, with the shape of what is inside, None
    for anything. `harmless`: any value is taken and changes nothing. `only`: the values that ask
    for nothing. With `kinds`, an object's `type` (`kind` where it has none) chooses its shape; one
    of a type without a shape is left to those who read it; so is one of another type, or refused
    where the kinds are `closed`.
    """

    keys: Mapping[str, Shape | None] = field(default_factory=dict)
    harmless: frozenset[str] = frozenset()
    only: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    kinds: Mapping[str, Shape | None] = field(default_factory=dict)
    kind: str = ""
    closed: bool = False


def _shape(honoured: str, harmless: str = "", **inside: Shape) -> Shape:
    keys = dict.fromkeys(honoured.split())
    return Shape({**keys, **inside}, frozenset(harmless.split()))


_CACHE = "cache_control prompt_cache_breakpoint"
_CALLERS: Mapping[str, tuple[Any, ...]] = {"allowed_callers": (["direct"],), "async": (False,)}
_MEDIUM = _shape("url", "detail format")
_OF_ENGINES = (
    *("image", "image_pil", "image_embeds", "input_image"),
    *("audio", "audio_embeds", "video", "video_embeds", "file"),
    *("thinking", "prompt_embeds", "tool_reference"),
)
# What OpenAI's Agents SDK for JavaScript copies from an answer into its text.
_OF_ANSWERS = "role refusal audio tool_calls function_call reasoning reasoning_content"
_PARTS = Shape(
    kinds={
        "text": _shape("type text", f"{_CACHE} annotations citations {_OF_ANSWERS}"),
        "image_url": _shape("type uuid", _CACHE, image_url=_MEDIUM),
        "audio_url": _shape("type uuid", _CACHE, audio_url=_MEDIUM),
        "video_url": _shape("type uuid", _CACHE, video_url=_MEDIUM),
        "input_audio": _shape("type uuid", _CACHE, input_audio=_shape("data format")),
        **dict.fromkeys(
            ("input_text", "output_text"), _shape("type text", f"{_CACHE} annotations")
        ),
        "refusal": _shape("type refusal"),
        **dict.fromkeys(_OF_ENGINES),
    },
    closed=True,
)
_CALLED = _shape("name arguments", "parsed_arguments")
_CALL = _shape(
    "id type",
    "index provider_specific_fields extra_content cache_control",
    function=_CALLED,
    custom=_shape("name input"),
)
_MESSAGE = Shape(
    {
        **dict.fromkeys(("role", "name", "tool_call_id")),
        **dict.fromkeys(("reasoning", "reasoning_content", "thinking")),
        "content": _PARTS,
        "tool_calls": _CALL,
        "function_call": _CALLED,
    },
    frozenset(
        {"refusal", "annotations", "parsed", "cache_control"}
        | {"provider_specific_fields", "thinking_blocks", "reasoning_details"}
    ),
    {"audio": (), "prefix": (False,), "partial": (False,)},
)
_FUNCTION = _shape(
    "name description parameters strict return response output_schema input_examples",
    "cache_control defer_loading",
)
_GRAMMAR = _shape("syntax definition")
_TEXT_FORM = _shape("type syntax definition", grammar=_GRAMMAR)
_TOOL = Shape(
    kinds={
        "function": Shape(
            {"type": None, "function": _FUNCTION},
            frozenset({"cache_control", "defer_loading"}),
            _CALLERS,
        ),
        "custom": _shape(
            "type", "cache_control", custom=_shape("name description", format=_TEXT_FORM)
        ),
    },
    kind="function",
)
_NAMED = _shape("name")
_ALLOWED = Shape(
    kinds={
        "function": _shape("type", function=_NAMED),
        "custom": _shape("type", custom=_NAMED),
    },
    kind="function",
    closed=True,
)
_CHOICE = _shape(
    "type", function=_NAMED, custom=_NAMED, allowed_tools=_shape("mode", tools=_ALLOWED)
)
_OF_SCHEMAS = "name description strict"
_FORMAT = Shape(
    kinds={
        "text": _shape("type"),
        "json_object": _shape("type schema value"),
        "json_schema": _shape(
            "type schema", _OF_SCHEMAS, json_schema=_shape("schema", _OF_SCHEMAS)
        ),
        "regex": _shape("type pattern regex"),
        "grammar": _shape("type grammar"),
    }
)

_OF_ITEMS = "id status created_by async"
_TEXT_PART = _shape("type text", f"{_CACHE} annotations logprobs parsed")
_ITEM_PARTS = Shape(
    kinds={
        **dict.fromkeys(("input_text", "output_text", "text"), _TEXT_PART),
        "input_image": Shape(
            dict.fromkeys(("type", "image_url")),
            frozenset({"detail", *_CACHE.split()}),
            {"file_id": ()},
        ),
    }
)
_THOUGHT = _shape("type text")
_OUTPUT = _shape("type call_id", f"{_OF_ITEMS} name caller namespace", output=_ITEM_PARTS)
_ITEM = Shape(
    kinds={
        "message": _shape("type role status", f"{_OF_ITEMS} phase", content=_ITEM_PARTS),
        "function_call": _shape(
            "type call_id name arguments", f"{_OF_ITEMS} parsed_arguments caller namespace"
        ),
        "custom_tool_call": _shape("type call_id name input", f"{_OF_ITEMS} caller namespace"),
        "function_call_output": _OUTPUT,
        "custom_tool_call_output": _OUTPUT,
        "reasoning": _shape(
            "type", f"{_OF_ITEMS} encrypted_content", content=_THOUGHT, summary=_THOUGHT
        ),
    },
    kind="message",
)
_ASKED = Shape(
    kinds={"message": _shape("type role status content", f"{_OF_ITEMS} phase")}, kind="message"
)
_ITEM_TOOL = Shape(
    kinds={
        "function": Shape(
            dict.fromkeys(("type", "name", "description", "parameters", "strict")),
            frozenset({"defer_loading", "output_schema"}),
            _CALLERS,
        ),
        "custom": Shape(
            {**dict.fromkeys(("type", "name", "description")), "format": _TEXT_FORM},
            frozenset({"defer_loading"}),
            _CALLERS,
        ),
    }
)

_BLOCK_CACHE = "cache_control"
_TEXT_BLOCK = _shape("type text", f"{_BLOCK_CACHE} citations parsed_output")
_IMAGE_BLOCK = _shape("type", _BLOCK_CACHE, source=_shape("type media_type data url"))
_BLOCK = Shape(
    kinds={
        "text": _TEXT_BLOCK,
        "image": _IMAGE_BLOCK,
        "tool_use": _shape("type id name input", f"{_BLOCK_CACHE} caller toolset_name"),
        "tool_result": _shape(
            "type tool_use_id",
            f"{_BLOCK_CACHE} is_error toolset_name",
            content=Shape(kinds={"text": _TEXT_BLOCK, "image": _IMAGE_BLOCK}),
        ),
        "thinking": _shape("type thinking", "signature"),
        "redacted_thinking": _shape("type", "data"),
    }
)
_CLAUDES_TOOL = Shape(
    kinds={
        "custom": Shape(
            dict.fromkeys(
                ("type", "name", "description", "input_schema", "strict", "input_examples")
            ),
            frozenset({_BLOCK_CACHE, "defer_loading", "eager_input_streaming"}),
            _CALLERS,
        )
    },
    kind="custom",
)
_EMBEDDED = Shape({**_MESSAGE.keys, "text": None, "image": None}, _MESSAGE.harmless, _MESSAGE.only)
INSIDE: Mapping[str, Mapping[str, Shape]] = {
    "ChatBody": {
        "messages": _MESSAGE,
        "tools": _TOOL,
        "tool_choice": _CHOICE,
        "functions": _FUNCTION,
        "function_call": _NAMED,
        "response_format": _FORMAT,
    },
    "CompletionBody": {"response_format": _FORMAT},
    "EmbeddingBody": {"messages": _MESSAGE, "input": _EMBEDDED},
    "TokenizeBody": {"messages": _MESSAGE, "tools": _TOOL},
    "ResponseBody": {
        "input": _ITEM,
        "tools": _ITEM_TOOL,
        "tool_choice": _shape("type name mode", tools=_shape("type name")),
        "text": _shape("verbosity", format=_FORMAT),
        "conversation": _shape("id"),
    },
    "DecisionBody": {"input": _ASKED},
    "ConversationBody": {"items": _ITEM},
    "ConversationItems": {"items": _ITEM},
    "MessageBody": {
        "messages": _shape("role", content=_BLOCK),
        "system": Shape(kinds={"text": _TEXT_BLOCK}),
        "tools": _CLAUDES_TOOL,
        "tool_choice": _shape("type name disable_parallel_tool_use"),
        "output_config": _shape("effort task_budget", format=_FORMAT),
    },
}
"""Form → field → the shape of its object, or of each in its list."""


_TEXTS = frozenset({"type", "role", "name", "id", "call_id", "tool_call_id", "tool_use_id", "mode"})
"""Keys whose values are texts, wherever they stand. Those who read them rely on it."""
_WITHOUT_KEYS = frozenset({int, str})
"""Types of inputs to embed, of which a body may have very many: they have no keys to check."""


def check_inside(form: type[Struct], body: Mapping[str, Any]) -> None:
    """Raise `RequestError` for the first key inside a field that is not known, or not with its
    value.
    """
    for name, shape in of_form(INSIDE, form).items():
        given = body.get(name)
        if isinstance(given, list):
            if _WITHOUT_KEYS.issuperset(map(type, given)):
                continue
            _check(shape, given, name)
            for number, one in enumerate(given):
                # A conversation among several; not the ids of a prompt, of which there are many.
                if isinstance(one, list) and one and isinstance(one[0], Mapping):
                    _check(shape, one, f"{name}[{number}]")
        elif isinstance(given, Mapping):
            _check(shape, given, name)


def _check(shape: Shape, given: Any, place: str) -> None:
    if isinstance(given, list):
        for number, one in enumerate(given):
            if isinstance(one, Mapping):
                _check(shape, one, f"{place}[{number}]")
        return
    for key in _TEXTS & given.keys():
        if not isinstance(given[key], str | None) and (shape.kinds or key in shape.keys):
            raise RequestError(f"{place}.{key} must be text", param=f"{place}.{key}")
    if shape.kinds:
        kind = given.get("type") or shape.kind
        known = kind in shape.kinds
        if kind and not known and shape.closed:
            raise _unknown_kind(kind, shape.kinds, f"{place}.type")
        found = shape.kinds[kind] if known else None
        if found is None:
            return
        shape = found
    for key, value in given.items():
        if key in shape.keys:
            inside = shape.keys[key]
            if inside is not None and isinstance(value, (list, Mapping)):
                _check(inside, value, f"{place}.{key}")
        elif value is not None and key not in shape.harmless:
            _check_other(shape, key, value, f"{place}.{key}")


def _unknown_kind(kind: Any, known: Iterable[str], place: str) -> RequestError:
    hint = nearest(str(kind), known)
    return RequestError(f"{place} {str(kind)[:80]!r} is unknown. {hint}", param=place)


def _check_other(shape: Shape, key: str, value: Any, place: str) -> None:
    if key not in shape.only:
        hint = nearest(str(key), shape.keys)
        raise RequestError(f"unknown parameter '{place}'. {hint}", param=place)
    if value not in shape.only[key]:
        raise RequestError(f"{place} is not supported", param=place)


def places(shape: Shape, place: str) -> Iterator[tuple[str, Shape]]:
    """The place of each object within a field, with its shape."""
    for kind, one in shape.kinds.items():
        if one is not None:
            yield f"{place} ({kind})", one
            yield from _within(one, place)
    if not shape.kinds:
        yield place, shape
        yield from _within(shape, place)


def _within(shape: Shape, place: str) -> Iterator[tuple[str, Shape]]:
    for key, inside in shape.keys.items():
        if inside is not None:
            yield from places(inside, f"{place}.{key}")
