"""Refuses a request that no engine would answer before the model is loaded for it."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from penstock.engines.base import Capabilities, Stated
from penstock.engines.sampling import (
    check_id_range,
    check_inputs,
    check_sampling,
    check_vectors,
    prompt_sampling,
)
from penstock.errors import RequestError, UnsupportedError
from penstock.openai.media.parts import seen
from penstock.types import ChatRequest, CompletionRequest, EmbeddingRequest, StructuredOutput

_ABLE = Capabilities(
    tasks=frozenset(),
    context_length=0,
    max_concurrency=1,
    max_top_logprobs=2**31,
    prompt_logprobs=True,
    logit_bias=True,
)
_NEEDS = {"tokens": "tokenize", "tokenizer_info": "tokenize"}
"""By task, another one: an engine that does the other does both."""
_DAMAGE = (
    *("unterminated character set", "missing ), unterminated subpattern"),
    *("unbalanced parenthesis", "nothing to repeat", "min repeat greater than max repeat"),
)
"""What is wrong with a regular expression, in Python's words, that is wrong in every dialect."""
_UNTRIED = re.compile(r"\[\^?\]|\[[^\]]*\[|\(\?[a-zA-Z]*i")
"""Patterns that Python does not check: classes of characters whose end depends on the dialect, and
patterns that ignore case, whose classes may take Python seconds.
"""
_LONGEST_TRIED = 4096
"""In characters. Longer patterns are checked by the engine alone."""


def check_before_load(
    request: Any,
    task: str = "",
    *,
    stated: Stated | None = None,
    known: Capabilities | None = None,
    engine: str = "",
) -> None:
    """Raise the errors that any engine would raise, before one is loaded. `stated` is what the
    model's files and options say, `known` what the engine could do when it last ran; `known` goes
    first. Whether the engine does a task is checked only if `task` is given.
    """
    stated = stated or Stated()
    tasks = known.tasks if known is not None else stated.tasks
    vocabulary = (known.vocabulary if known is not None else 0) or stated.vocabulary
    if task and tasks is not None:
        check_task(task, tasks, engine)
    if vocabulary is not None:
        for param, ids in _ids_of(request):
            check_id_range(ids, vocabulary, param)
    if isinstance(request, EmbeddingRequest) and known is not None:
        check_vectors(request.vectors, known, engine)
    inputs = stated.inputs if known is None else known.inputs
    if isinstance(request, ChatRequest) and inputs:
        seen(request.messages, inputs, engine)
    if isinstance(request, EmbeddingRequest) and inputs:
        check_inputs(request.inputs, engine, sees="image" in inputs)
    if isinstance(request, (ChatRequest, CompletionRequest)):
        _check_generated(request, known, stated, engine)


def check_task(task: str, tasks: frozenset[str], engine: str) -> None:
    """Raise `UnsupportedError` unless an engine with these tasks does this one."""
    if _NEEDS.get(task, task) not in tasks:
        raise UnsupportedError(
            f"the {engine} engine does not support {task} with this model, but"
            f" {', '.join(sorted(tasks))}"
        )


def _check_generated(
    request: ChatRequest | CompletionRequest,
    known: Capabilities | None,
    stated: Stated,
    engine: str,
) -> None:
    sampling = request.sampling
    if isinstance(request, CompletionRequest):
        if request.prompt == []:
            raise RequestError("the prompt is empty", param="prompt")
        sampling, _ = prompt_sampling(request)
    if known is None:
        known = msgspec.structs.replace(_ABLE, extra=frozenset(sampling.extra))
        if stated.max_top_logprobs is not None:
            known = msgspec.structs.replace(known, max_top_logprobs=stated.max_top_logprobs)
        if sampling.structured is not None:
            known = msgspec.structs.replace(known, structured=frozenset({sampling.structured.kind}))
    check_sampling(sampling, request.n, known, engine)
    if sampling.structured is not None:
        _check_readable(sampling.structured)


def _check_readable(structured: StructuredOutput) -> None:
    """Raise `RequestError` for a regular expression or a grammar that is wrong in every dialect. An
    engine itself refuses one that it cannot constrain an answer by.
    """
    spec = structured.spec
    if structured.kind == "grammar" and ":" not in spec:
        raise RequestError("the grammar has no rule", param=structured.param)
    if structured.kind != "regex" or len(spec) > _LONGEST_TRIED or _UNTRIED.search(spec):
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on patterns that later Pythons read otherwise
            re.compile(spec)
    except re.error as error:
        if error.msg in _DAMAGE and not _is_rusts(spec):
            raise RequestError(
                f"not a valid regular expression: {error}", param=structured.param
            ) from None
    except (OverflowError, RecursionError):
        pass


def _is_rusts(pattern: str) -> bool:
    import jsonschema_rs  # only for a pattern that Python cannot read

    try:
        jsonschema_rs.validator_for({"pattern": pattern})
    except ValueError:
        return False
    return True


def _ids_of(request: Any) -> Iterator[tuple[str, Sequence[int]]]:
    """The token ids in a request, with the parameters that hold them."""
    if isinstance(request, (ChatRequest, CompletionRequest)):
        sampling = request.sampling
        if isinstance(request, CompletionRequest) and isinstance(request.prompt, list):
            yield "prompt", request.prompt
        yield "stop_token_ids", sampling.stop_token_ids
        yield "allowed_token_ids", sampling.allowed_token_ids
        yield "logit_bias", [token for token, _ in sampling.logit_bias]
    elif isinstance(request, EmbeddingRequest):
        for one in request.inputs:
            if isinstance(one, list):
                yield "input", one
    elif isinstance(request, list):
        yield "tokens", request
