"""Translates without vLLM: plain text into token ids, and vLLM's outputs into deltas."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from penstock.engines.templates.chat_template import ChatTemplate
from penstock.errors import EngineError, RequestError
from penstock.types import (
    Delta,
    FinishReason,
    Message,
    Sampling,
    TokenLogprob,
    Usage,
)

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
        if not self._chats or not all(
            message.keys() == _KEYS and message["role"] != "developer" for message in messages
        ):
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
    """Turns vLLM's outputs into the deltas of one request. `decode` gives the text of a token.
    Log probabilities name tokens by their ids where `as_ids`.

    Every token passes here, so only the delta is built.
    """

    __slots__ = (
        *("_as_ids", "_begun", "_counts", "_decode", "_extra_ids", "_prompt", "_prompt_ids"),
        *("_prompt_top", "_returns_ids", "_top"),
    )

    def __init__(
        self, sampling: Sampling, decode: Callable[[int], str] = str, *, as_ids: bool = False
    ) -> None:
        self._decode = decode
        self._top = sampling.logprobs
        self._extra_ids = bool(sampling.extra.get("logprob_token_ids"))
        self._prompt_top = sampling.prompt_logprobs
        self._prompt: tuple[TokenLogprob, ...] | None = None
        self._as_ids = as_ids or bool(sampling.extra.get("return_tokens_as_token_ids"))
        self._prompt_ids: tuple[int, ...] | None = None
        self._returns_ids = bool(sampling.extra.get("return_token_ids"))
        self._begun = False
        self._counts: dict[int, int] = {}

    def deltas(self, output: Any) -> list[Delta]:
        """The deltas of a `RequestOutput`. Raises `EngineError` if the engine failed on it."""
        made = []
        if output.prompt_logprobs is not None and self._prompt is None:
            self._prompt = self._of_prompt(output)
        if self._returns_ids and self._prompt_ids is None:
            self._prompt_ids = tuple(output.prompt_token_ids or ())
        for answer in output.outputs:
            index, ids, reason = answer.index, answer.token_ids, answer.finish_reason
            count = self._counts[index] = self._counts.get(index, 0) + len(ids)
            first = count == len(ids)
            if reason is None:
                if ids or answer.text:
                    # The first delta has the prompt's length: some protocols start with it.
                    usage = None if self._begun else _usage(output, 0)
                    self._begun = True
                    made.append(
                        Delta(
                            index,
                            answer.text,
                            tuple(ids),
                            self._logprobs(answer),
                            usage=usage,
                            prompt_logprobs=self._prompt if first else None,
                            prompt_token_ids=self._prompt_ids if first else None,
                        )
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
                    prompt_logprobs=self._prompt if first else None,
                    prompt_token_ids=self._prompt_ids if first else None,
                )
            )
        return made

    def _logprobs(self, answer: Any) -> tuple[TokenLogprob, ...] | None:
        if self._top is None or answer.logprobs is None:
            return None
        most = None if self._extra_ids else self._top
        return tuple(
            self._logprob(token_id, step, most)
            for token_id, step in zip(answer.token_ids, answer.logprobs, strict=False)
        )

    def _of_prompt(self, output: Any) -> tuple[TokenLogprob, ...]:
        """The log probabilities of the prompt's tokens; vLLM has none for the first."""
        return tuple(
            TokenLogprob(self._name(token_id, self._decode(token_id)), None, id=token_id)
            if step is None
            else self._logprob(token_id, step, self._prompt_top)
            for token_id, step in zip(output.prompt_token_ids, output.prompt_logprobs, strict=True)
        )

    def _logprob(self, token_id: int, step: Mapping[int, Any], most: int | None) -> TokenLogprob:
        chosen = step[token_id]
        ranked = list(step.items())
        if most is not None:
            ranked = sorted(ranked, key=lambda pair: -pair[1].logprob)[:most]
        return TokenLogprob(
            self._name(token_id, chosen.decoded_token),
            max(chosen.logprob, LEAST_LOGPROB),
            tuple(
                (self._name(number, entry.decoded_token), max(entry.logprob, LEAST_LOGPROB))
                for number, entry in ranked
            ),
            id=token_id,
            raw=(chosen.decoded_token or "").encode() if self._as_ids else None,
            rank=chosen.rank,
            top_ids=tuple(number for number, _ in ranked),
        )

    def _name(self, token_id: int, text: str | None) -> str:
        return f"token_id:{token_id}" if self._as_ids else text or ""


def _usage(output: Any, count: int) -> Usage:
    prompt = len(output.prompt_token_ids or ()) + len(output.encoder_prompt_token_ids or ())
    return Usage(prompt, count, output.num_cached_tokens or 0)
