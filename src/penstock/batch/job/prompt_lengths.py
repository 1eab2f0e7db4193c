"""How many tokens a row's prompt has, told before it is asked."""

from __future__ import annotations

from typing import NamedTuple

from penstock.batch.pipeline.pipeline import Pipeline
from penstock.batch.rows.repair import Repair, Request
from penstock.batch.rows.requests import ColumnRequests
from penstock.batch.rows.retry import Asker, EngineAsker
from penstock.batch.rows.row import Row
from penstock.batch.stages.engine import EngineRequests
from penstock.batch.stages.text import ChatTemplates, Tokens
from penstock.engines.base import LLMEngine
from penstock.engines.token_engine import TokenEngine
from penstock.errors import UnsupportedError
from penstock.openai.tools import arguments_as_objects
from penstock.types import ChatRequest


class PromptLength(NamedTuple):
    """In tokens: the prompt's, those that the answer needs at most (1 where nobody said), and those
    of both together that the model takes. `shortened`: a prompt that is too long is not refused,
    but cut until it fits.
    """

    tokens: int
    answer: int
    context: int
    shortened: bool = False

    @property
    def is_over_long(self) -> bool:
        """Whether the model refuses it as it is."""
        return self.tokens + self.answer > self.context

    @property
    def computed(self) -> int:
        """The tokens that the model will compute, at most."""
        if not self.is_over_long:
            return self.tokens
        return max(self.context - self.answer, 0) if self.shortened else 0


async def prompt_length(asker: Asker, row: Row) -> PromptLength | None:
    """That of a prepared row; None where it does not show what is asked, or the engine cannot tell.

    Raises `PenstockError` for a row that cannot be asked.
    """
    asked = _asked(asker, row)
    if asked is None:
        return None
    engine, request, repair = asked
    tokens = await _tokens(engine, request)
    if tokens is None:
        return None
    return PromptLength(
        tokens,
        request.sampling.max_tokens or 1,
        engine.capabilities.context_length,
        shortened=repair.truncate,
    )


def _asked(asker: Asker, row: Row) -> tuple[LLMEngine, Request, Repair] | None:
    """What the engine is asked for a row, where that shows before anything has been done with
    it.
    """
    if isinstance(asker, EngineAsker):
        if not isinstance(row.request, ChatRequest):
            return None
        return (
            asker.engine,
            row.request,
            asker.form.repair if isinstance(asker.form, ColumnRequests) else Repair(),
        )
    if not isinstance(asker, Pipeline):
        return None
    others = [worker for worker in asker.workers if not isinstance(worker, ChatTemplates | Tokens)]
    if (
        not others
        or not isinstance(first := others[0], EngineRequests)
        or (asked := first.asked(row.request)) is None
    ):
        return None
    return *asked, first.repair


async def _tokens(engine: LLMEngine, request: Request) -> int | None:
    """How many tokens a prompt has; None where the engine cannot tell."""
    if not isinstance(engine, TokenEngine):
        try:
            ids = await engine.prompt_ids(request)
        except UnsupportedError:
            return None
        return len(ids) if ids is not None else None
    if isinstance(request, ChatRequest):
        messages = arguments_as_objects(request.messages)
        variables = request.chat_template_kwargs
        text: str | list[int] = engine.template.render(
            messages, tools=request.tools, override=request.chat_template, variables=variables
        )
    else:
        text = request.prompt
    return len(await engine.tokenize(text)) if isinstance(text, str) else len(text)
