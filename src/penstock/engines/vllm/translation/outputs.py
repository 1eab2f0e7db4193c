"""Turns vLLM's request outputs into deltas. Every token passes here, so only the delta is built."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from penstock.errors import EngineError
from penstock.types import Delta, FinishReason, TokenLogprob, Usage

_REASONS: Mapping[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "abort": "abort",
    "repetition": "stop",
}
LEAST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON lacks. vLLM's own server sends the same number."""


class DeltaMaker:
    """Makes the deltas of one request. `top_logprobs` is `Sampling.logprobs`."""

    __slots__ = ("_begun", "_counts", "_top")

    def __init__(self, top_logprobs: int | None) -> None:
        self._top = top_logprobs
        self._begun = False
        self._counts: dict[int, int] = {}

    def deltas(self, output: Any) -> list[Delta]:
        """The deltas of one `RequestOutput`. Raises `EngineError` if the request failed inside the
        engine.
        """
        made = []
        for answer in output.outputs:
            index, ids, reason = answer.index, answer.token_ids, answer.finish_reason
            count = self._counts[index] = self._counts.get(index, 0) + len(ids)
            if reason is None:
                if ids or answer.text:
                    # The first delta has the prompt's length: some protocols open their streams
                    # with it.
                    usage = _usage(output, 0) if not self._begun else None
                    self._begun = True
                    made.append(
                        Delta(index, answer.text, tuple(ids), self._logprobs(answer), usage=usage)
                    )
                continue
            if reason == "error":
                raise EngineError("the engine failed on this request")
            made.append(
                Delta(
                    index,
                    answer.text,
                    tuple(ids),
                    self._logprobs(answer),
                    _REASONS.get(reason, "stop"),
                    _usage(output, count),
                    stop=answer.stop_reason if isinstance(answer.stop_reason, str) else None,
                    kv_transfer_params=output.kv_transfer_params,
                    stop_token=answer.stop_reason if isinstance(answer.stop_reason, int) else None,
                )
            )
        return made

    def _logprobs(self, answer: Any) -> tuple[TokenLogprob, ...] | None:
        if self._top is None or answer.logprobs is None:
            return None
        return tuple(map(self._logprob, answer.token_ids, answer.logprobs))

    def _logprob(self, token_id: int, step: Mapping[int, Any]) -> TokenLogprob:
        chosen = step[token_id]
        top: Sequence[tuple[str, float]] = ()
        if self._top:
            ranked = sorted(step.values(), key=lambda entry: -entry.logprob)[: self._top]
            top = [
                (entry.decoded_token or "", max(entry.logprob, LEAST_LOGPROB)) for entry in ranked
            ]
        return TokenLogprob(
            chosen.decoded_token or "", max(chosen.logprob, LEAST_LOGPROB), tuple(top)
        )


def _usage(output: Any, count: int) -> Usage:
    prompt = len(output.prompt_token_ids or ()) + len(output.encoder_prompt_token_ids or ())
    return Usage(prompt, count, output.num_cached_tokens or 0)
