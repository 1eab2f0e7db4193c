"""The form of jobs that decide: each row is the input of the same questions, and each question
becomes two columns, `name` and `name_probabilities`.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from penstock.batch.decisions.questions import FILTER, RowQuestions, option_names
from penstock.batch.rows.requests import (
    END_COLUMNS,
    FLAT_OBJECTS,
    ColumnRequests,
    end_of,
    end_types,
)
from penstock.batch.rows.row import Outcome, Row
from penstock.engines.base import LLMEngine
from penstock.engines.decisions.answers import values_of
from penstock.errors import ConfigError, UnsupportedError
from penstock.types import (
    ChoiceQuestion,
    DecideRequest,
    Decision,
    PredicateQuestion,
    Question,
    Usage,
)

if TYPE_CHECKING:
    import pyarrow as pa


class ColumnDecisions(ColumnRequests):
    """Decisions about rows, which become columns.

    `<name>` holds the decision: an option's value, true or false, a list of values if the question
    takes several, a number for a score; null if there is none.
    `<name>_probabilities` holds the probability of each option, by its value. With a `cascade` the
    column `model` names the model that decided. `options` are those of `ColumnRequests`.
    """

    kind = "decisions"

    def __init__(
        self, deciding: RowQuestions, *, cascade: bool = False, prefix: str = "", **options: Any
    ) -> None:
        super().__init__(**options)
        self._own = ("model", *END_COLUMNS) if cascade else END_COLUMNS
        self._deciding = deciding
        self._options = [option_names(question) for question in deciding.questions]
        asked = (deciding.identity(), self._system)
        self._digest = blake2b(self._encode(asked), digest_size=16)
        names: list[str] = []
        parts = dict(FLAT_OBJECTS)
        for question, values in zip(deciding.questions, self._options, strict=True):
            probabilities = f"{question.name}_probabilities"
            names += [question.name, probabilities]
            parts[probabilities] = [f"{probabilities}.{value}" for value in values]
        taken = [name for name in names if names.count(name) > 1 or name in self._own]
        if taken:
            raise ConfigError(
                f"two result columns would be called '{taken[0]}'; rename the question",
                field="decide",
            )
        self._name_columns((*names, *self._own), parts, prefix)

    def prepare(self, row: Row) -> None:
        super().prepare(row)
        chat = row.request
        row.request = DecideRequest(chat.messages, self._deciding.questions, adapter=chat.adapter)
        row.shareable = True

    def check_engine(self, engine: LLMEngine) -> None:
        if "decide" not in engine.capabilities.tasks:
            raise UnsupportedError(
                f"the {engine.name} engine gives no probabilities of options with this model"
            )
        self.check_sees(engine)

    async def ask(self, engine: LLMEngine, row: Row) -> Outcome:
        return self.outcome_of(*await self.ask_one(engine, row))

    def check_small(self, engine: LLMEngine) -> None:
        self.check_engine(engine)

    async def ask_one(
        self, engine: LLMEngine, row: Row, *, small: bool = True
    ) -> tuple[list[Decision], Usage]:
        """One engine's decisions about a row; those of the `small` (or only) model are calibrated.
        Raises what the engine raises.
        """
        found = await engine.decide(row.request)
        if not small:
            return found.items, found.usage
        deciding = self._deciding
        return list(map(deciding.calibrated, found.items, deciding.questions)), found.usage

    def outcome_of(self, made: list[Decision], usage: Usage, model: str | None = None) -> Outcome:
        """The outcome of a row with these decisions. `model` made them; None if there is only one
        model.
        """
        parsed: list[Any] = [(one.value, one.probabilities) for one in made]
        outcome = Outcome(usage=usage, parsed=parsed if model is None else [*parsed, model])
        outcome.skipped = not self._passes(made)
        return outcome

    def compared(self, made: list[Decision]) -> list[Any]:
        """The part of decisions that is equal if two models agree."""
        return [
            self._passes(made)
            if one.name == FILTER and self._deciding.threshold is not None
            else one.value
            if one.value is None or isinstance(one.value, list)
            else one.probabilities.index(max(one.probabilities))
            for one in made
        ]

    def confidence(self, made: list[Decision]) -> float:
        """The confidence of the decision with the lowest one."""
        return min(
            min(max(p, 1 - p) for p in one.probabilities)
            if isinstance(one.value, list)
            else max(one.probabilities)
            for one in made
        )

    def _passes(self, made: list[Decision]) -> bool:
        """Whether the filter, if there is one, lets a row pass."""
        if self._deciding.threshold is None:
            return True
        found = next(one for one in made if one.name == FILTER)
        if found.value is None:  # there is no decision
            return False
        return found.probabilities[found.values.index(True)] >= self._deciding.threshold

    def results(self, outcome: Outcome) -> list[Any]:
        decided: list[Any] = []
        count = len(self._options)
        if outcome.parsed is None:
            decided = [None] * (len(self.result_columns) - len(END_COLUMNS))
        else:
            for pair, names in zip(outcome.parsed[:count], self._options, strict=True):
                decided += [pair[0], dict(zip(names, pair[1], strict=True))]
            decided += outcome.parsed[count:]
        return [*decided, *end_of(outcome)]

    def arrow_types(self) -> list[pa.DataType]:
        import pyarrow as pa

        types: list[pa.DataType] = []
        for question, names in zip(self._deciding.questions, self._options, strict=True):
            shares = pa.struct([(name, pa.float64()) for name in names])
            types += [_value_type(question), shares]
        types += [pa.string()] * (len(self._own) - len(END_COLUMNS))
        return [*types, *end_types()]


def _value_type(question: Question) -> pa.DataType:
    import pyarrow as pa

    if isinstance(question, PredicateQuestion):
        return pa.bool_()
    if not isinstance(question, ChoiceQuestion):
        return pa.float64()
    kinds = {type(value) for value in values_of(question)}
    one: pa.DataType = pa.float64()
    if len(kinds) == 1:
        one = {bool: pa.bool_(), int: pa.int64(), str: pa.string()}.get(kinds.pop(), one)
    return pa.list_(one) if question.several else one
