"""Translates without vLLM: plain text into token ids, and vLLM's outputs into deltas."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from penstock.engines.chat_template import ChatTemplate
from penstock.errors import EngineError, RequestError
from penstock.types import Delta, FinishReason, Message, TokenLogprob, Usage

_REASONS: Mapping[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "abort": "abort",
    "repetition": "stop",
}
LEAST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON lacks. vLLM's own server sends the same number."""
_KEYS = {"role", "content"}
_TEXT = " \n An order — №7 — of «two»\tlamps. \n"  # some templates strip blanks
_TRIALS: Sequence[list[Message]] = (
    [{"role": "user", "content": _TEXT}],
    [{"role": "system", "content": _TEXT}, {"role": "user", "content": _TEXT}],
    [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": _TEXT},
        {"role": "user", "content": _TEXT},
    ],
)

Renders = Callable[[list[Message]], Any]


class PlainText:
    """Tokenizes plain text without vLLM's renderer, which takes three times as long for the same
    ids.

    `learn` compares the results with the renderer's; a shortcut that differs is not used. `backend`
    is the tokenizer beneath Hugging Face's; nobody may set it to truncate or pad.
    """

    def __init__(self, backend: Any, template: ChatTemplate | None) -> None:
        self._encode = backend.encode
        self._template = template
        self._as_is = backend.truncation is None and backend.padding is None
        self._chats = False
        self._texts = {True: False, False: False}

    def learn(self, chat: Renders, text: Callable[[str, bool], Any]) -> None:
        """Enable the shortcuts that agree with the renderer. `chat` renders a conversation, `text`
        a text with or without special tokens. Takes a while.
        """
        self._texts = {
            special: self._as_is and self._same_text(text, special) for special in self._texts
        }
        self._chats = self._as_is and all(self._same_chat(chat, trial) for trial in _TRIALS)

    def chat(self, messages: list[Message]) -> list[int] | None:
        """The ids of a conversation; None if the renderer must make them, or raise an error."""
        if not self._chats or not all(message.keys() == _KEYS for message in messages):
            return None
        return self._chat(messages)

    def text(self, text: str, special_tokens: bool) -> list[int] | None:
        """The ids of a text; None if the renderer must make them."""
        if not self._texts[special_tokens]:
            return None
        ids: list[int] = self._encode(text, add_special_tokens=special_tokens).ids
        return ids

    def _chat(self, messages: list[Message]) -> list[int] | None:
        assert self._template is not None
        try:
            text = self._template.render(messages)
        except RequestError:
            return None
        ids: list[int] = self._encode(text, add_special_tokens=False).ids
        return ids

    def _same_chat(self, chat: Renders, trial: list[Message]) -> bool:
        if self._template is None:
            return False
        try:
            made = chat(trial)
        except Exception:  # its template may raise anything; ours must refuse the conversation too
            return self._chat(trial) is None
        return _is(made, self._chat(trial))

    def _same_text(self, text: Callable[[str, bool], Any], special: bool) -> bool:
        try:
            made = text(_TEXT, special)
        except Exception:  # a model with more inputs than text
            return False
        return _is(made, self._encode(_TEXT, add_special_tokens=special).ids)


def _is(made: Any, ids: list[int] | None) -> bool:
    """Whether an input of vLLM's consists of these ids and nothing else."""
    return bool(made.get("type") == "token" and list(made["prompt_token_ids"]) == ids)


class DeltaMaker:
    """Turns vLLM's outputs into the deltas of one request. `top_logprobs` is `Sampling.logprobs`.

    Every token passes here, so only the delta is built.
    """

    __slots__ = ("_begun", "_counts", "_top")

    def __init__(self, top_logprobs: int | None) -> None:
        self._top = top_logprobs
        self._begun = False
        self._counts: dict[int, int] = {}

    def deltas(self, output: Any) -> list[Delta]:
        """The deltas of a `RequestOutput`. Raises `EngineError` if the engine failed on it."""
        made = []
        for answer in output.outputs:
            index, ids, reason = answer.index, answer.token_ids, answer.finish_reason
            count = self._counts[index] = self._counts.get(index, 0) + len(ids)
            if reason is None:
                if ids or answer.text:
                    # The first delta has the prompt's length: some protocols start with it.
                    usage = None if self._begun else _usage(output, 0)
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
                    stop_token=answer.stop_reason if isinstance(answer.stop_reason, int) else None,
                    kv_transfer_params=output.kv_transfer_params,
                )
            )
        return made

    def _logprobs(self, answer: Any) -> tuple[TokenLogprob, ...] | None:
        if self._top is None or answer.logprobs is None:
            return None
        return tuple(map(self._logprob, answer.token_ids, answer.logprobs))

    def _logprob(self, token_id: int, step: Mapping[int, Any]) -> TokenLogprob:
        chosen = step[token_id]
        ranked = sorted(step.values(), key=lambda entry: -entry.logprob)[: self._top]
        return TokenLogprob(
            chosen.decoded_token or "",
            max(chosen.logprob, LEAST_LOGPROB),
            tuple(
                (entry.decoded_token or "", max(entry.logprob, LEAST_LOGPROB)) for entry in ranked
            ),
        )


def _usage(output: Any, count: int) -> Usage:
    prompt = len(output.prompt_token_ids or ()) + len(output.encoder_prompt_token_ids or ())
    return Usage(prompt, count, output.num_cached_tokens or 0)
