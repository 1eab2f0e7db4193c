"""What SGLang's engine yields, as deltas."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from penstock.engines.sampling import StopStrings
from penstock.errors import EngineError, OverloadedError, PenstockError, RequestError
from penstock.types import Delta, FinishReason, Sampling, TokenLogprob, Usage

LEAST_LOGPROB = -9999.0
"""What stands for minus infinity, which JSON does not have."""


class DeltaMaker:
    """Makes the deltas of one answer. `text_of` gives the text of one token.

    Outputs are increments: each has the text and the ids of its own tokens. SGLang leaves stop
    strings in the text, and sends their beginnings before it knows them for such, so they are cut
    here.
    """

    def __init__(self, sampling: Sampling, text_of: Callable[[int], str]) -> None:
        self._top = sampling.logprobs
        self._stop = StopStrings(sampling.stop)
        self._stop_ids = sampling.stop_token_ids
        self._text_of = text_of
        self._begun = False

    def delta(self, output: Mapping[str, Any]) -> Delta | None:
        """What one output adds; None where there is nothing to show. Raises `PenstockError` for a
        failed request.
        """
        meta = output["meta_info"]
        ids = tuple(output["output_ids"])
        finish = meta["finish_reason"]
        if finish is not None and (error := _failure(finish)) is not None:
            raise error
        text = self._stop.push(output["text"])
        if finish is None:
            if not ids and not text:
                return None
            usage = None if self._begun else _usage(meta, 0)  # the first tells the prompt's length
            self._begun = True
            return Delta(
                text=text, token_ids=ids, logprobs=self._logprobs(meta, len(ids)), usage=usage
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
        )

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


_REASONS: Mapping[str, FinishReason] = {"stop": "stop", "length": "length", "abort": "abort"}


def _failure(finish: Mapping[str, Any]) -> PenstockError | None:
    """The error of a request that SGLang gave up; None where it ended, or was aborted by us."""
    if finish["type"] != "abort" or finish.get("status_code") is None:
        return None
    return error_of(int(finish["status_code"]), str(finish.get("message") or "aborted"))


def error_of(status: int, message: str) -> PenstockError:
    """The error that stands for an HTTP status of SGLang's."""
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
