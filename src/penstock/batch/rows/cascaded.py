"""The row form (see `batch/job/forms.py`) of jobs whose structured answers come from two models: a
small one, and a large one for the rows that the small one is unsure of.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from penstock.batch.rows.repair import collect, one_text
from penstock.batch.rows.requests import FLAT_OBJECTS, RESULT_COLUMNS, ColumnRequests
from penstock.batch.rows.row import Outcome, Row
from penstock.engines.base import LLMEngine
from penstock.engines.sampling import check_sampling
from penstock.errors import ConfigError
from penstock.types import Delta, Usage

if TYPE_CHECKING:
    import pyarrow as pa


class Answered(msgspec.Struct, frozen=True):
    """An answer, and how sure the model was of it."""

    outcome: Outcome
    confidence: float


class CascadedAnswers(ColumnRequests):
    """Structured answers of one of two models, which the column `model` names. `options` are those
    of `ColumnRequests`.

    The confidence of an answer is the probability of its least likely token, as the model gives it
    before the grammar masks tokens; 0 if the answer does not follow the schema. That is the lowest
    quantile of token probabilities in "Language Model Cascades: Token-level uncertainty and beyond"
    (Gupta et al., ICLR 2024, https://arxiv.org/abs/2404.10136): unlike their product, it does not
    fall with the length of the answer.
    """

    def __init__(self, *, prefix: str = "", **options: Any) -> None:
        super().__init__(prefix=prefix, **options)
        if "model" in self.fields:
            raise ConfigError(
                "the field 'model' has the name of a result column",
                field="schema",
                hint="Rename the field",
            )
        self._name_columns(
            ("response", *self.fields, "model", *RESULT_COLUMNS), FLAT_OBJECTS, prefix
        )
        # 0: the log probability of the sampled token alone, without alternatives.
        self._scored = msgspec.structs.replace(self.sampling, logprobs=0)

    def check_small(self, engine: LLMEngine) -> None:
        """As `check_engine`, for the small model, whose confidence is measured."""
        check_sampling(self._scored, 1, engine.capabilities, engine.name)
        self.check_sees(engine)

    async def ask_one(self, engine: LLMEngine, row: Row, *, small: bool) -> tuple[Answered, Usage]:
        """One engine's answer to a row. Raises what the engine raises."""
        least = 0.0  # of the last answer: a repaired one overwrites it

        def scored(deltas: list[Delta]) -> Outcome:
            nonlocal least
            least = min(
                (
                    -math.inf if token.logprob is None else token.logprob
                    for delta in deltas
                    for token in delta.logprobs or ()
                ),
                default=-math.inf,
            )
            return one_text(deltas)

        request = row.request
        if small:
            request = msgspec.structs.replace(request, sampling=self._scored)
        ask = partial(collect, convert=scored if small else one_text)
        outcome = await self.repair.answer(request, engine, ask, self._read)
        confidence = math.exp(least) if small and outcome.error is None else 0.0
        return Answered(outcome, confidence), outcome.usage or Usage()

    def confidence(self, answered: Answered) -> float:
        """How sure the small model was of an answer."""
        return answered.confidence

    def compared(self, answered: Answered) -> Any:
        """The part of an answer that is equal if two models agree: its fields."""
        return answered.outcome.parsed

    def outcome_of(self, answered: Answered, usage: Usage, model: str) -> Outcome:
        """The outcome of a row with this answer, which `model` gave."""
        fields = answered.outcome.parsed
        named = None if fields is None else {**fields, "model": model}
        return msgspec.structs.replace(answered.outcome, usage=usage, parsed=named)

    def results(self, outcome: Outcome) -> list[Any]:
        found = super().results(outcome)
        found.insert(1 + len(self.fields), (outcome.parsed or {}).get("model"))
        return found

    def arrow_types(self) -> list[pa.DataType]:
        import pyarrow as pa

        types = super().arrow_types()
        types.insert(1 + len(self.fields), pa.string())
        return types
