"""The parameters that have no effect here, and those that are refused by name: together with the
fields of the bodies, every parameter of OpenAI's, Anthropic's and vLLM's APIs.

`docs/parameters.md` is made of these tables (`tools/parameters.py`). A name that a body has as a
field is honoured, unless it stands in `HARMLESS` or `ONLY`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from msgspec import Struct

from penstock.errors import RequestError
from penstock.openai.parameters.engine import DEFAULTS, EngineParameters

One = TypeVar("One")
Verdict = Literal["honoured", "harmless", "refused"]
_CACHE = "prefixes are cached by content"
_GREEDY = "transcriptions are greedy"
_USER = {"user": "for the provider's records"}
_SHARED = {"request_id": "the header `x-request-id` names a request"}
_GENERATING = {
    **_SHARED,
    "session_id": "a hint for routing",
    "stream_interval": "the server joins chunks where a client lags",
    **_USER,
}
_OPENAI = {
    "metadata": "for the provider's records",
    "prompt_cache_key": _CACHE,
    "prompt_cache_options": _CACHE,
    "prompt_cache_retention": _CACHE,
    "safety_identifier": "for the provider's records",
    "service_tier": "there is one tier",
}
HARMLESS: Mapping[str, Mapping[str, str]] = {
    "ChatBody": {
        **_GENERATING,
        **_OPENAI,
        "guided_decoding_backend": "every backend enforces the same constraint",
        "prediction": "a hint that makes OpenAI's models faster",
        "store": "answers of chat completions are not stored",
        "verbosity": "a hint for OpenAI's models",
    },
    "CompletionBody": {
        **_GENERATING,
        "guided_decoding_backend": "every backend enforces the same constraint",
    },
    "DecisionBody": {**_SHARED, **_OPENAI, **_USER},
    "EmbeddingBody": {**_SHARED, **_USER},
    "ResponseBody": {
        **_GENERATING,
        **_OPENAI,
        "client_metadata": "for the provider's records; Codex sends it",
        "max_tool_calls": "counts calls of built-in tools, of which there are none",
    },
    "ScoreBody": {**_SHARED, **_USER},
    "RerankBody": {**_SHARED, **_USER},
    "ClassifyBody": {**_SHARED, **_USER},
    "PoolingBody": {**_SHARED, **_USER},
    "SpeechBody": {},
    "TranscriptionFields": {
        "min_p": _GREEDY,
        "seed": _GREEDY,
        "top_k": _GREEDY,
        "top_p": _GREEDY,
        "stream_include_usage": "the last event has the usage always",
    },
    "TokenizeBody": _USER,
    "DetokenizeBody": {},
    "MessageBody": {
        **_SHARED,
        "cache_control": _CACHE,
        "inference_geo": "the model runs where the server is",
        "metadata": "for the provider's records",
        "service_tier": "there is one tier",
    },
}
"""Form → parameter → why it changes nothing. Any value is taken."""

_NOTHING: tuple[Any, ...] = (False, "", [], {})
"""Values that ask for nothing, where a parameter has no other default."""
_PROCESSED_MEDIA: dict[str, tuple[Any, ...]] = {
    "mm_payload": ("tensors",),
    "return_mm_kwargs": (False,),
}
_POOLING: dict[str, tuple[Any, ...]] = {
    "cache_salt": _NOTHING,
    "mm_processor_kwargs": _NOTHING,
    "padding": ("do_not_pad",),
    "priority": (0,),
    "truncate_prompt_tokens": _NOTHING,
    "truncation_side": _NOTHING,
    "use_activation": (),  # false asks for raw numbers
}
_VECTORS: dict[str, tuple[Any, ...]] = {
    **_POOLING,
    "add_special_tokens": (True,),
    "media_io_kwargs": _NOTHING,
    "embed_dtype": ("float32",),
    "endianness": ("native", "little"),
}
_TEXTS: dict[str, tuple[Any, ...]] = {
    **_POOLING,
    "add_generation_prompt": (False,),
    "add_special_tokens": (True,),
    "chat_template": _NOTHING,
    "chat_template_kwargs": _NOTHING,
    "continue_final_message": (False,),
    "media_io_kwargs": _NOTHING,
    "messages": _NOTHING,
}
_PAIRS: dict[str, tuple[Any, ...]] = {
    **_POOLING,
    "chat_template_kwargs": _NOTHING,
    "instruction": _NOTHING,
    "max_tokens_per_doc": (0,),
    "max_tokens_per_query": (0,),
}
_KEEPS_THOUGHTS = {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}
"""What Claude Code sends: nothing is cleared."""
REFUSED: Mapping[str, Mapping[str, tuple[Any, ...]]] = {
    "ChatBody": {
        **_PROCESSED_MEDIA,
        "return_token_offsets": (False,),
        "audio": _NOTHING,
        "moderation": _NOTHING,
        "web_search_options": (),
    },
    "CompletionBody": {
        **_PROCESSED_MEDIA,
        "return_token_offsets": (False,),
        "prompt_embeds": _NOTHING,
    },
    "EmbeddingBody": _VECTORS,
    "PoolingBody": _VECTORS,
    "ClassifyBody": _TEXTS,
    "ScoreBody": _PAIRS,
    "RerankBody": _PAIRS,
    "TranscriptionFields": {
        "chunking_strategy": _NOTHING,
        "frequency_penalty": (0,),
        "include": _NOTHING,
        "include_stop_str_in_output": (False,),
        "keywords": _NOTHING,
        "known_speaker_names": _NOTHING,
        "known_speaker_references": _NOTHING,
        "languages": _NOTHING,
        "length_penalty": (1,),
        "n": (1,),
        "presence_penalty": (0,),
        "repetition_penalty": (1,),
        "stream_continuous_usage_stats": (False,),
        "use_beam_search": (False,),
        "vllm_xargs": _NOTHING,
        "watermarking": _NOTHING,
    },
    "TokenizeBody": {"media_io_kwargs": _NOTHING, "mm_processor_kwargs": _NOTHING},
    "ResponseBody": {
        **_PROCESSED_MEDIA,
        "access_programs": _NOTHING,
        "background_options": _NOTHING,
        "context_management": _NOTHING,
        "enable_response_messages": (False,),
        "image": _NOTHING,
        "moderation": _NOTHING,
        "previous_input_messages": _NOTHING,
        "prompt": _NOTHING,
    },
    "MessageBody": {
        **_PROCESSED_MEDIA,
        "billing_policy": _NOTHING,
        "compaction": _NOTHING,
        "container": _NOTHING,
        "context_management": ({}, {"edits": []}, _KEEPS_THOUGHTS),
        "diagnostics": _NOTHING,
        "fallback_credit_token": _NOTHING,
        "fallbacks": _NOTHING,
        "mcp_servers": _NOTHING,
        "speed": ("standard",),
    },
}
"""Form → parameter → the values that it may have: those that change nothing. A field that the form
has is not looked up here.
"""
_NOWHERE: dict[str, tuple[Any, ...]] = {
    "ec_transfer_params": ({},),
    "include_reasoning": (True,),
    "return_prompt_text": (False,),
    "routed_experts_prompt_start": (0,),
}
"""Engines' parameters that no engine here honours."""
_ONE_ANSWER: dict[str, tuple[Any, ...]] = {
    **_NOWHERE,
    "diversity_penalty": (0.0,),
    "early_stopping": (False,),
    "length_penalty": (1.0,),
    "num_beam_groups": (1,),
    "return_token_ids": (False,),
    "use_beam_search": (False,),
}
"""The same of forms with one answer, which has no place for token ids."""
_TRANSLATED = {"temperature": (0,), "to_language": ("en",)}
ONLY: Mapping[str, Mapping[str, tuple[Any, ...]]] = {
    "ChatBody": _NOWHERE,
    "CompletionBody": {**_NOWHERE, "suffix": ("",)},
    "ResponseBody": {
        **_ONE_ANSWER,
        "truncation": ("disabled",),
    },
    "SpeechBody": {"instructions": ("",), "stream_format": ("audio",)},
    "TranslationBody": _TRANSLATED,
    "TranslationLine": _TRANSLATED,
    "TranscriptionFields": {"temperature": (0,), "to_language": ()},
    "MessageBody": {
        **_ONE_ANSWER,
        "thread": (),
    },
}
"""As `REFUSED`, of fields that a form has."""


def of_form(table: Mapping[str, Mapping[str, One]], form: type[Struct]) -> Mapping[str, One]:
    """What a table has for a form, or for that which it is made of."""
    return next((table[one.__name__] for one in form.__mro__ if one.__name__ in table), {})


def is_known(form: type[Struct], name: str, value: Any) -> bool:
    """Whether a parameter that is no field of the form may be left out. Raises `RequestError` for
    one that is refused with this value.
    """
    if name in of_form(HARMLESS, form):
        return True
    values = of_form(REFUSED, form).get(name)
    if values is not None and not _is_one(value, values):
        raise _refusal(name, values)
    return values is not None


def check_only(body: Struct) -> None:
    """Raise `RequestError` for a field whose value is refused."""
    for name, values in of_form(ONLY, type(body)).items():
        given = getattr(body, name)
        if given is not None and not _is_one(given, values):
            raise _refusal(name, values)


def verdict(form: type[Struct], name: str) -> tuple[Verdict, str]:
    """What becomes of a parameter, and why, or which values it may have."""
    if (why := of_form(HARMLESS, form).get(name)) is not None:
        return "harmless", why
    values = of_form(ONLY, form).get(name)
    if values is None and name in form.__struct_fields__:
        of_engines = issubclass(form, EngineParameters) and name in DEFAULTS
        return "honoured", "vLLM" if of_engines else ""
    if values is None:
        values = of_form(REFUSED, form)[name]
    return "refused", "" if values is _NOTHING else f"but for {_in_words(values) or '`null`'}"


def _is_one(value: Any, values: tuple[Any, ...]) -> bool:
    return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in values)


def _refusal(name: str, values: tuple[Any, ...]) -> RequestError:
    but = "" if values is _NOTHING or not values else f" but for {_in_words(values)}"
    return RequestError(f"{name} is not supported{but}", param=name)


def _in_words(values: tuple[Any, ...]) -> str:
    words = (f"`{one}`" if isinstance(one, str) and one else json.dumps(one) for one in values)
    return " and ".join(f"`{one}`" if one[0] in '{"' else one for one in words)
