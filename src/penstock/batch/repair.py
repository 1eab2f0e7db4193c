"""Asks for one answer, and asks again otherwise where it was cut off, too long to be asked, or not in its form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from penstock.batch.rows import Outcome
from penstock.engines.base import LLMEngine
from penstock.engines.deltas import Deltas
from penstock.errors import ContextLengthError, EngineError
from penstock.types import ChatRequest, Message, Usage

_CUTS = 8
_KEPT_EACH_CUT = 0.75
_AGAIN = "That answer cannot be used: {why}. Answer again, with nothing but JSON that follows the schema."


@dataclass(frozen=True)
class Repair:
    """What may be done. `raise_limit`: twice the tokens for an answer that was cut off; `truncate`: a shorter prompt
    where it is too long for the model; `json_attempts`: answers until one is in its form.
    """

    raise_limit: bool = False
    truncate: bool = False
    json_attempts: int = 1

    async def ask(self, engine: LLMEngine, request: ChatRequest, read: Callable[[Outcome], Outcome]) -> Outcome:
        """The last answer, as `read` finds it, with the tokens of all of them. Raises what the engine raises."""
        usages: list[Usage] = []
        request, outcome = await self._fitting(engine, request, usages)
        outcome = read(outcome)
        for _ in range(self.json_attempts - 1):
            if outcome.error is None:
                break
            turns: list[Message] = [
                {"role": "assistant", "content": outcome.response},
                {"role": "user", "content": _AGAIN.format(why=outcome.error.message)},
            ]
            again = msgspec.structs.replace(request, messages=[*request.messages, *turns])
            try:
                _, answer = await self._fitting(engine, again, usages)
            except ContextLengthError:
                break  # the conversation has no room for another answer
            outcome = read(answer)
        if len(usages) > 1:
            outcome.usage = Usage(
                sum(usage.prompt_tokens for usage in usages),
                sum(usage.completion_tokens for usage in usages),
                sum(usage.cached_tokens for usage in usages),
            )
        return outcome

    async def _fitting(
        self, engine: LLMEngine, request: ChatRequest, usages: list[Usage]
    ) -> tuple[ChatRequest, Outcome]:
        """An answer, the prompt made shorter or the limit higher as need be; and the request that brought it."""
        cuts = 0
        while True:
            try:
                outcome = await collect(engine.chat(request))
            except ContextLengthError:
                if not self.truncate or cuts >= _CUTS:
                    raise
                cuts += 1
                request = msgspec.structs.replace(request, messages=shortened(request.messages))
                continue
            if outcome.usage is not None:
                usages.append(outcome.usage)
            limit = request.sampling.max_tokens
            room = engine.capabilities.context_length - (outcome.usage.prompt_tokens if outcome.usage else 0)
            if not self.raise_limit or outcome.finish_reason != "length" or limit is None or limit >= room:
                return request, outcome
            wider = msgspec.structs.replace(request.sampling, max_tokens=min(2 * limit, room))
            request = msgspec.structs.replace(request, sampling=wider)


def shortened(messages: list[Message]) -> list[Message]:
    """The conversation with its longest text cut to three quarters. The end goes: what is asked often comes first."""
    lengths = [len(text) if isinstance(text := message.get("content"), str) else 0 for message in messages]
    longest = max(range(len(messages)), key=lengths.__getitem__)
    if not lengths[longest]:
        return messages
    text = messages[longest]["content"]
    cut = {**messages[longest], "content": text[: int(len(text) * _KEPT_EACH_CUT)]}
    return [*messages[:longest], cut, *messages[longest + 1 :]]


async def collect(deltas: Deltas) -> Outcome:
    """The whole of one answer."""
    text = ""
    reason: str | None = None
    usage: Usage | None = None
    async for delta in deltas:
        text += delta.text
        if delta.finish_reason is not None:
            reason, usage = delta.finish_reason, delta.usage
    if reason in (None, "abort", "error"):
        raise EngineError("the engine ended the request before its answer was complete")
    return Outcome(text, None, reason, usage)
