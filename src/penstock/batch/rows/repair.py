"""Asks for one answer. Asks again, with a change, if the answer was cut off or does not follow its
schema, or if the prompt was too long.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, TypeVar

import msgspec

from penstock.batch.rows.row import Outcome, RowError
from penstock.batch.structured import Schema
from penstock.engines.base import LLMEngine
from penstock.engines.tasks import generated
from penstock.errors import (
    AnswerFormError,
    ConfigError,
    ContextLengthError,
    EngineError,
    RequestError,
)
from penstock.types import ChatRequest, CompletionRequest, Delta, Message, StructuredOutput, Usage

CUTS = 24
_KEPT_EACH_CUT = 0.75  # so that a text may be a thousand times too long
_AGAIN = (
    "That answer cannot be used: {why}. Answer again, with nothing but JSON that follows the"
    " schema."
)

T = TypeVar("T")

Request = ChatRequest | CompletionRequest
Ask = Callable[[LLMEngine, Request], Awaitable[Outcome]]
Read = Callable[[Outcome], Awaitable[Outcome]]


@dataclass(frozen=True)
class Repair:
    """What may be done. `raise_limit`: ask with twice the tokens if the answer was cut off.
    `truncate`: shorten a prompt that is too long for the model. `json_attempts`: how many answers
    may be asked for until one follows the schema.
    """

    raise_limit: bool = False
    truncate: bool = False
    json_attempts: int = 1

    @classmethod
    def of(cls, on_length: str, on_invalid_json: str, attempts: int) -> Repair:
        """The repairs that the job options of these names ask for. Raises `ConfigError`."""
        wanted = [part.strip() for part in on_length.split(",")]
        for part in wanted:
            if part not in ("keep", "raise", "truncate"):
                raise ConfigError(
                    f"must be keep, raise or truncate, not {part!r}", field="on_length", value=part
                )
        return cls(
            raise_limit="raise" in wanted,
            truncate="truncate" in wanted,
            json_attempts=attempts if on_invalid_json == "retry" else 1,
        )

    def answer(
        self, request: Request, engine: LLMEngine, ask: Ask, read: Read | None = None
    ) -> Awaitable[Outcome]:
        """The last answer, parsed by `read`, with the token counts of all answers.

        Raises what `ask` raises.
        """
        if read is None and not (self.raise_limit or self.truncate):
            return ask(engine, request)
        return self._answer(request, engine, ask, read)

    async def _answer(
        self, request: Request, engine: LLMEngine, ask: Ask, read: Read | None
    ) -> Outcome:
        usages: list[Usage] = []
        fitting = partial(
            self._fitting, partial(ask, engine), engine.capabilities.context_length, usages
        )
        request, outcome = await fitting(request)
        if read is not None:
            outcome = await read(outcome)
            for _ in range(self.json_attempts - 1):
                if (again := _follow_up(request, outcome)) is None:
                    break
                try:
                    _, answer = await fitting(again)
                except ContextLengthError:
                    break  # the conversation has no room for another answer
                outcome = await read(answer)
        if len(usages) > 1:
            outcome.usage = sum(usages, Usage())
        return outcome

    async def _fitting(
        self,
        ask: Callable[[Request], Awaitable[Outcome]],
        context_length: int,
        usages: list[Usage],
        request: Request,
    ) -> tuple[Request, Outcome]:
        """An answer, with a shorter prompt or a higher limit if needed; and its request."""
        cuts = 0
        if self.truncate:  # a prompt that leaves too few tokens for the answer is too long
            whole = msgspec.structs.replace(request.sampling, whole=True)
            request = msgspec.structs.replace(request, sampling=whole)
        while True:
            try:
                outcome = await ask(request)
            except ContextLengthError:
                if not self.truncate or cuts >= CUTS:
                    raise
                cuts += 1
                request = shortened(request)
                continue
            if outcome.usage is not None:
                usages.append(outcome.usage)
            limit = request.sampling.max_tokens
            room = context_length - (outcome.usage.prompt_tokens if outcome.usage else 0)
            if (
                not self.raise_limit
                or outcome.finish_reason != "length"
                or limit is None
                or limit >= room
            ):
                return request, outcome
            wider = msgspec.structs.replace(request.sampling, max_tokens=min(2 * limit, room))
            request = msgspec.structs.replace(request, sampling=wider)


def cut(given: str | list[int]) -> str | list[int]:
    """The first three quarters of a text, or of its token ids, which is too long."""
    return given[: int(len(given) * _KEPT_EACH_CUT)]


def shortened(request: Request) -> Request:
    """The request with its prompt, or the longest text of its conversation, cut to three quarters.
    The end goes: what is asked often comes first.
    """
    if isinstance(request, CompletionRequest):
        return msgspec.structs.replace(request, prompt=cut(request.prompt))
    texts = [
        (len(text), number, at)
        for number, message in enumerate(request.messages)
        for at, text in _texts_in(message)
    ]
    length, number, at = max(texts, default=(0, 0, 0))
    if not length:
        return request
    messages = [*request.messages]
    content = messages[number]["content"]
    if isinstance(content, str):
        content = cut(content)
    else:
        shorter = {**content[at], "text": cut(content[at]["text"])}
        content = [*content[:at], shorter, *content[at + 1 :]]
    messages[number] = {**messages[number], "content": content}
    return msgspec.structs.replace(request, messages=messages)


def _texts_in(message: Message) -> Iterator[tuple[int, str]]:
    """The texts of a message, with their places among its parts."""
    content = message.get("content")
    if isinstance(content, str):
        yield 0, content
    for at, part in enumerate(content if isinstance(content, list) else ()):
        if isinstance(text := part.get("text"), str):
            yield at, text


def invalid_json(why: str, finish_reason: str | None, usage: Usage | None) -> RowError:
    """The error of an answer that is not in its form, or was cut off before it could be."""
    if finish_reason == "length":
        count = usage.completion_tokens if usage else 0
        why = (
            f"the answer was cut off after {count} tokens, before its JSON ended; raise max_tokens"
        )
    return RowError(AnswerFormError.kind, "parse", False, why)


async def misfit(structured: StructuredOutput | None, text: str) -> str | None:
    """Why an answer does not fit its JSON constraint, if it has one. Raises `RequestError`."""
    if structured is None or structured.kind == "regex":
        return None
    try:
        await _schema(structured.spec).read(text)
    except ConfigError as error:
        raise RequestError(str(error), param="structured_outputs") from None
    except ValueError as error:
        return str(error)
    return None


@lru_cache(maxsize=64)
def _schema(spec: str) -> Schema:
    try:
        return Schema(msgspec.json.decode(spec or '{"type": "object"}', type=dict))
    except msgspec.DecodeError:
        raise ConfigError("not a JSON object", field="schema") from None


def _follow_up(request: Request, outcome: Outcome) -> Request | None:
    """The request that asks again and says what was wrong. None if nothing was wrong, or if the
    answer would be the same.
    """
    if outcome.error is None:
        return None
    if isinstance(request, CompletionRequest):
        return None if request.sampling.is_deterministic else request
    answer: Message = {"role": "assistant", "content": outcome.response}
    before = request.messages
    if request.continue_final_message and isinstance(begun := before[-1].get("content"), str):
        before, answer["content"] = before[:-1], begun + (outcome.response or "")
    again: Message = {"role": "user", "content": _AGAIN.format(why=outcome.error.message)}
    return msgspec.structs.replace(
        request,
        messages=[*before, answer, again],
        continue_final_message=False,
        add_generation_prompt=True,
    )


async def collect(model: Any, request: Request, convert: Callable[[list[Delta]], T]) -> T:
    """The deltas that an engine or a handle gives for one request, converted. Raises what the
    engine raises, and `EngineError` if the request was ended early.
    """
    if getattr(model, "served", False):
        request = msgspec.structs.replace(request, batch=True)
    deltas: list[Delta] = []
    finished = 0
    async for batch in generated(model, request):
        for delta in batch:
            if delta.finish_reason is not None:
                finished += delta.finish_reason not in ("abort", "error")
        deltas += batch
    if finished < request.n:
        raise EngineError("the engine ended the request before its answer was complete")
    return convert(deltas)


def one_text(deltas: list[Delta]) -> Outcome:
    """The outcome of a request for one text."""
    text = ""
    for delta in deltas:
        text += delta.text
    return Outcome(text, None, deltas[-1].finish_reason, deltas[-1].usage)
