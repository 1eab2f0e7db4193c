"""An engine's answer to a row: asked for, checked against its schema, and taken apart into
columns.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from penstock.batch.rows.repair import Request, invalid_json, misfit
from penstock.batch.rows.row import Outcome
from penstock.batch.stages.tasks import without_reasoning
from penstock.engines.base import LLMEngine
from penstock.engines.tasks import generated
from penstock.errors import AnswerFormError, EngineError
from penstock.openai.responses import Answers, chat_logprobs, tool_call_list
from penstock.types import StructuredOutput


async def ask(engine: LLMEngine, request: Request) -> Outcome:
    """The outcome of one request; `parsed` are the columns of its `n` answers. Raises what the
    engine raises.
    """
    found = Answers()
    tokens: dict[int, list[int]] = {}
    async for batch in generated(engine, request):
        for delta in batch:
            found.add(delta)
            tokens.setdefault(delta.index, []).extend(delta.token_ids)
    reasons = found.reasons
    if len(reasons) < request.n or {"abort", "error"}.intersection(reasons.values()):
        raise EngineError("the engine ended the request before its answer was complete")
    reason = "length" if "length" in reasons.values() else reasons[min(reasons)]
    outputs = [_output(found, index, tokens[index]) for index in sorted(reasons)]
    return Outcome(None, None, reason, found.usage, parsed=outputs)


def checked(structured: StructuredOutput | None) -> Callable[[Outcome], Awaitable[Outcome]]:
    """What notes in an outcome that an answer is not the JSON that was asked for. A tool call need
    not be.
    """

    async def check(outcome: Outcome) -> Outcome:
        for output in outcome.parsed:
            text = output["generated_text"]
            if not output["tool_calls"] and (why := await misfit(structured, text)) is not None:
                outcome.response = text
                outcome.error = invalid_json(why, output["finish_reason"], outcome.usage)
                break
        return outcome

    return check


def columns(outcome: Outcome, prompt: Any, *, text: bool) -> dict[str, Any]:
    """The columns of a row's answers, and its prompt as it was; without `text` only their tokens.

    Raises `AnswerFormError`.
    """
    if outcome.error is not None:
        raise AnswerFormError(outcome.error.message)
    outputs, usage = outcome.parsed, outcome.usage
    assert usage is not None
    if not text:
        for output in outputs:
            output["generated_text"] = None
    return {
        "prompt": prompt,
        **outputs[0],
        "num_input_tokens": usage.prompt_tokens,
        "num_generated_tokens": usage.completion_tokens,
        "num_cached_tokens": usage.cached_tokens,
        "outputs": outputs if len(outputs) > 1 else None,
    }


def _output(found: Answers, index: int, tokens: list[int]) -> dict[str, Any]:
    reasoning: str | None = found.reasoning.get(index)
    text = found.texts.get(index, "")
    if reasoning is None and "think>" in text:  # not every engine tells it from the answer
        reasoning, text = without_reasoning(text)
    calls, tops = found.tool_calls.get(index), found.logprobs.get(index)
    logprobs = None if tops is None else chat_logprobs(tops)
    return {
        "generated_text": text,
        "generated_tokens": tokens,
        "finish_reason": found.reasons[index],
        "reasoning_content": reasoning,
        "tool_calls": tool_call_list(calls) if calls else None,
        "logprobs": None if logprobs is None else logprobs["content"],
    }
