"""Sampling parameters in SGLang's form, and SGLang's outputs as deltas."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from penstock.engines.sampling import StopStrings, shown_prompt
from penstock.errors import EngineError, OverloadedError, PenstockError, RequestError
from penstock.types import (
    SAME_NAME,
    Delta,
    FinishReason,
    Sampling,
    StructuredOutput,
    TokenLogprob,
    Usage,
)

LEAST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON lacks."""
_ANY_OBJECT = '{"type": "object"}'
_NAMES = {"min_tokens": "min_new_tokens", "seed": "sampling_seed"}
"""SGLang's names of those in `SAME_NAME`, where they are others."""
_REASONS: Mapping[str, FinishReason] = {"stop": "stop", "length": "length", "abort": "abort"}


def sampling_params(sampling: Sampling, max_tokens: int, special: bool = False) -> dict[str, Any]:
    """The `sampling_params` of `async_generate`. `DeltaMaker` cuts stop strings. `special`: special
    tokens show in the text.
    """
    params: dict[str, Any] = {
        "max_new_tokens": max_tokens,
        "no_stop_trim": True,
        **{_NAMES.get(name, name): getattr(sampling, name) for name in SAME_NAME},
        "top_k": sampling.top_k if sampling.top_k > 0 else -1,
        "skip_special_tokens": False if special else None,
        "stop": list(sampling.stop) or None,
        "stop_token_ids": list(sampling.stop_token_ids) or None,
        **_constraint(sampling.structured),
    }
    return {name: value for name, value in params.items() if value is not None}


def _constraint(structured: StructuredOutput | None) -> dict[str, Any]:
    if structured is None:
        return {}
    if structured.kind == "regex":
        return {"regex": structured.spec}
    return {"json_schema": structured.spec if structured.kind == "json_schema" else _ANY_OBJECT}


class DeltaMaker:
    """Makes the deltas of one answer to `prompt`, token ids. `text_of` gives the text of one token,
    and `hidden` are the texts of special tokens to remove.

    Each output has the text and the ids of its own tokens. SGLang leaves stop strings in the text,
    and sends their beginnings before it recognises them, so they are cut here.
    """

    def __init__(
        self,
        sampling: Sampling,
        text_of: Callable[[int], str],
        hidden: Sequence[str] = (),
        prompt: Sequence[int] = (),
    ) -> None:
        self._prompt = shown_prompt(sampling, prompt)
        self._hidden = hidden
        self._top = sampling.logprobs
        self._stop = StopStrings(sampling.stop)
        self._stop_ids = sampling.stop_token_ids
        self._text_of = text_of
        self._begun = False

    def delta(self, output: Mapping[str, Any]) -> Delta | None:
        """The delta of an output; None if it shows nothing. Raises a failed request's error."""
        meta = output["meta_info"]
        ids = tuple(output["output_ids"])
        finish = meta["finish_reason"]
        # SGLang gave the request up. An abort without a status is ours.
        if finish is not None and finish["type"] == "abort" and finish.get("status_code"):
            raise error_of(int(finish["status_code"]), str(finish.get("message") or "aborted"))
        text = self._stop.push(self._shown(output["text"]))
        if finish is None:
            if not ids and not text:
                return None
            usage = None if self._begun else _usage(meta, 0)  # the first has the prompt's length
            self._begun = True
            return Delta(
                text=text,
                token_ids=ids,
                logprobs=self._logprobs(meta, len(ids)),
                usage=usage,
                prompt_token_ids=self._take_prompt(),
            )
        reason: FinishReason = _REASONS.get(finish["type"], "stop")
        if self._stop.stopped:
            reason = "stop"
        else:
            text += self._stop.flush()
        return Delta(
            text=text,
            token_ids=ids,
            logprobs=self._logprobs(meta, len(ids)),
            finish_reason=reason,
            usage=_usage(meta, meta["completion_tokens"]),
            stop=self._stop.found,
            stop_token=matched
            if isinstance(matched := finish.get("matched"), int) and matched in self._stop_ids
            else None,
            prompt_token_ids=self._take_prompt(),
        )

    def _take_prompt(self) -> tuple[int, ...] | None:
        """The prompt's ids for the first delta, where they are wanted; None for later ones."""
        prompt, self._prompt = self._prompt, None
        return prompt

    def _shown(self, text: str) -> str:
        for token in self._hidden:
            text = text.replace(token, "")
        return text

    def _logprobs(self, meta: Mapping[str, Any], count: int) -> tuple[TokenLogprob, ...] | None:
        if self._top is None:
            return None
        chosen = _last(meta.get("output_token_logprobs"), count)
        tops = _last(meta.get("output_top_logprobs"), count) if self._top else [None] * len(chosen)
        return tuple(map(self._logprob, chosen, tops))

    def _logprob(self, chosen: Sequence[Any], top: Sequence[Sequence[Any]] | None) -> TokenLogprob:
        ranked = tuple(
            (self._text_of(entry[1]), _finite(entry[0])) for entry in (top or ())[: self._top]
        )
        return TokenLogprob(self._text_of(chosen[1]), _finite(chosen[0]), ranked)


def error_of(status: int, message: str) -> PenstockError:
    """Maps an HTTP status of SGLang's to an error."""
    text = " ".join(message.split())
    if status in (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS):
        return OverloadedError(text)
    return RequestError(text) if status < HTTPStatus.INTERNAL_SERVER_ERROR else EngineError(text)


def _last(entries: Sequence[Any] | None, count: int) -> Sequence[Any]:
    return () if not entries or not count else entries[-count:]


def _finite(logprob: float | None) -> float:
    return LEAST_LOGPROB if logprob is None else max(logprob, LEAST_LOGPROB)


def _usage(meta: Mapping[str, Any], count: int) -> Usage:
    return Usage(meta["prompt_tokens"], count, meta.get("cached_tokens") or 0)
