"""Maps a server's refusals to the errors of `penstock.errors`.

A prompt that is too long for the model is recognised by the words of each server: there is no
common form.
"""

from __future__ import annotations

import re

import msgspec

from penstock.errors import (
    ContextLengthError,
    ModelNotFoundError,
    OverloadedError,
    PenstockError,
    RequestError,
    TooManyRequestsError,
    UnsupportedError,
    UpstreamError,
)
from penstock.http.complaints import complaint
from penstock.http.retries import is_throttling

_NAMES = re.compile(
    r"context_?(length|window|size)_?(is_)?exceed|exceed(ed|s)?_?context|prompt_?too_?long", re.I
)
_WORDS = re.compile(
    "|".join(
        (
            # vLLM, OpenAI, Azure, LiteLLM, llama.cpp, Ollama, LM Studio, Anthropic: the word
            # "context", with a limit or an excess
            r"(maximum|max|available|configured)[\w ]{0,20}context",
            r"context[ _-]?(length|window|size|limit)\b.{0,80}"
            r"(exceed|overflow|too small|is only|maximum|at most|however)",
            r"(exceed|longer than|greater than|larger than|too (long|large|big|many)|not"
            r" fit|beyond|over(flow|run))"
            r".{0,100}(context|n_ctx|num_ctx|max_model_len|max_seq_len|max_position_embeddings)",
            r"contextwindowexceeded",
            # OpenVINO Model Server, SGLang, vLLM, Gemini, Moonshot: a count that exceeds a bound
            r"((?<!max )(?<!completion )(?<!output )(?<!generated )(?<!new )(?<!response )\btokens?"
            r"|\b(prompt|inputs?|sequence)( tokens?| length| token count)?)\b(?! ?_)"
            r".{0,60}\b(exceed(s|ed|ing)?|longer than|greater than|larger than|more than)\b"
            r".{0,60}(max|limit|allowed|model|context|window|capacity|pool)",
            r"exceed(s|ed)? (the )?model token limit",
            r"decoder prompt .{0,60}longer than",
            # Anthropic, Bedrock, Perplexity, llama.cpp's embeddings: "prompt too long"
            (
                r"\b(prompt|inputs?|messages|conversation|sequence)\b(?!\[)(?!['\"]).{0,40}\btoo"
                r" (long|large)\b"
            ),
            r"too many (input |prompt )?tokens\b",
            r"too large to process",
            # TGI, TEI
            r"`?inputs`? tokens \+ `?max_new_tokens`? must",
            r"`?inputs`? must have less than",
            # xAI, DashScope, GLM
            r"maximum (prompt|input|sequence|model) length",
            r"input length should be",
            r"prompt exceeds max",
            # Groq and others: advice to shorten the prompt
            r"reduce (the |your )?(length|size) of (the |your )?(input|messages|prompt)",
            r"reduce your (prompt|input|message)",
            # OpenAI: one text has too many characters
            r"(content|prompt|input)[\]'\". ].{0,20}string too long",
            # vLLM: the prompt leaves no room for an answer
            r"max_(completion_)?tokens.{0,40}must be at least 1, got -?\d",
        )
    ),
    re.I | re.S,
)
_LONGEST_TEXT = 4096


def as_refusal(error: UpstreamError) -> PenstockError:
    """The error for the engine's caller.

    A faulty request is the caller's fault. A wrong key is not: the caller supplies none.
    """
    status = error.http_status
    if is_throttling(error):
        kind = TooManyRequestsError if status == 429 else OverloadedError
        refused = kind(str(error), error.retry_after if error.retry_after is not None else 1.0)
        refused.given_up = error.given_up
        return refused
    if status is None or error.retryable:
        return error
    details = complaint(error.body)
    message = " ".join((details.message or str(error)).split())[:1000]
    if is_too_long(error):
        # A server of another API may name the prompt by another name than this request did.
        about_answer = (details.param or "").startswith("max_")
        return ContextLengthError(message, param=details.param if about_answer else None)
    lacks = status == 501 and not _is_page(error.body)
    if lacks or details.code == UnsupportedError.kind:
        return UnsupportedError(
            f"the server of the remote engine does not support this request: {message}",
            param=details.param,
        )
    if status == 404:
        return ModelNotFoundError(message, param="model")
    if status in (400, 412, 413, 415, 422):
        return RequestError(message, param=details.param)
    return error


def is_no_route(error: UpstreamError) -> bool:
    """Whether an answer says that the path does not exist. A 404 about a model has OpenAI's error
    form and names it.
    """
    if error.http_status == 405:
        return True
    if error.http_status == 501:
        return _is_page(error.body)
    if error.http_status != 404:
        return False
    details = complaint(error.body)
    return details.code == "not_found" or not (details.code or details.kind or details.status)


def is_too_long(error: UpstreamError) -> bool:
    """Whether the prompt, or prompt plus answer, exceeds the context of the server's model."""
    if error.http_status not in (400, 412, 413, 422, 500) or not error.body:
        return False
    details = complaint(error.body)
    return says_too_long(details.message, details.code, details.kind)


def says_too_long(message: str, *names: str) -> bool:
    """Whether an error says that the prompt is too long. `names` are the error's code and type."""
    return any(_NAMES.search(name) for name in names) or bool(
        _WORDS.search(message[:_LONGEST_TEXT])
    )


def _is_page(body: str) -> bool:
    """Whether a body is not JSON: it then comes from a proxy in front of the API."""
    try:
        msgspec.json.decode(body)
    except (ValueError, RecursionError):
        return True
    return False
