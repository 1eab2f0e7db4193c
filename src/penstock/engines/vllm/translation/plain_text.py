"""Plain text as token ids without vLLM's renderer, which makes the same ids with three times the
work.

That it is the same is not taken for granted: each way is tried against the renderer when the engine
starts, and not used where they differ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from penstock.engines.text.chat_template import ChatTemplate
from penstock.errors import RequestError
from penstock.types import Message

_KEYS = {"role", "content"}
_TEXT = " \n An order — №7 — of «two»\tlamps. \n"  # blanks at both ends: some templates strip them
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
    """Tokens of conversations and of texts. `backend` is the tokenizer beneath Hugging Face's,
    which nobody else sets to cut or to pad.
    """

    def __init__(self, backend: Any, template: ChatTemplate | None) -> None:
        self._encode = backend.encode
        self._template = template
        self._as_is = backend.truncation is None and backend.padding is None
        self._chats = False
        self._texts = {True: False, False: False}

    def learn(self, chat: Renders, text: Callable[[str, bool], Any]) -> None:
        """Compare with what the renderer makes: `chat` of a conversation, `text` of a text, with
        special tokens or without. Takes a while.
        """
        self._texts = {
            special: self._as_is and self._same_text(text, special) for special in self._texts
        }
        self._chats = self._as_is and all(self._same_chat(chat, trial) for trial in _TRIALS)

    def chat(self, messages: Sequence[Message]) -> list[int] | None:
        """The ids of a conversation; None where the renderer must make them, or say what is
        wrong.
        """
        if not self._chats or not all(message.keys() == _KEYS for message in messages):
            return None
        return self._chat(messages)

    def text(self, text: str, special_tokens: bool) -> list[int] | None:
        """The ids of a text; None where the renderer must make them."""
        if not self._texts[special_tokens]:
            return None
        ids: list[int] = self._encode(text, add_special_tokens=special_tokens).ids
        return ids

    def _chat(self, messages: Sequence[Message]) -> list[int] | None:
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
        except Exception:  # whatever its template raises; ours must refuse such a conversation too
            return self._chat(trial) is None
        return _is(made, self._chat(trial))

    def _same_text(self, text: Callable[[str, bool], Any], special: bool) -> bool:
        try:
            made = text(_TEXT, special)
        except Exception:  # a model that takes more than text
            return False
        return _is(made, self._encode(_TEXT, add_special_tokens=special).ids)


def _is(made: Any, ids: list[int] | None) -> bool:
    """Whether vLLM's input is these ids and nothing else."""
    return bool(made.get("type") == "token" and list(made["prompt_token_ids"]) == ids)
