"""Tokenizes plain text without vLLM's renderer, which takes three times as long for the same ids.

The results are compared with the renderer's when the engine starts. A shortcut that differs is not
used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from penstock.engines.chat_template import ChatTemplate
from penstock.errors import RequestError
from penstock.types import Message

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
    """Tokenizes conversations and texts. `backend` is the tokenizer beneath Hugging Face's; nobody
    may set it to truncate or pad.
    """

    def __init__(self, backend: Any, template: ChatTemplate | None) -> None:
        self._encode = backend.encode
        self._template = template
        self._as_is = backend.truncation is None and backend.padding is None
        self._chats = False
        self._texts = {True: False, False: False}

    def learn(self, chat: Renders, text: Callable[[str, bool], Any]) -> None:
        """Compare with the renderer, and enable the shortcuts that agree. `chat` renders a
        conversation, `text` a text with or without special tokens. Takes a while.
        """
        self._texts = {
            special: self._as_is and self._same_text(text, special) for special in self._texts
        }
        self._chats = self._as_is and all(self._same_chat(chat, trial) for trial in _TRIALS)

    def chat(self, messages: list[Message]) -> list[int] | None:
        """The ids of a conversation; None if the renderer must make them, or report what is
        wrong.
        """
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
    """Whether vLLM's input consists of these ids and nothing else."""
    return bool(made.get("type") == "token" and list(made["prompt_token_ids"]) == ids)
