"""Contract of engines that answer questions with probabilities."""

from __future__ import annotations

import asyncio

import pytest

from penstock.engines.base import LLMEngine
from penstock.errors import (
    RequestError,
)
from penstock.testing.asking import (
    Asked,
)
from penstock.types import (
    ChoiceQuestion,
    DecideRequest,
    Option,
    PredicateQuestion,
    Question,
    ScoreQuestion,
)


class Decisions(Asked):
    """Tests of decisions."""

    def _decide(self, *questions: Question) -> DecideRequest:
        return DecideRequest(self.prompt, questions)

    async def test_each_option_has_a_probability(self, engine: LLMEngine) -> None:
        _needs_decisions(engine)
        labels = ("refund", "repair", "repair at home", "no answer")
        options = tuple(map(Option, labels))
        levels = tuple(Option(str(value), value=value) for value in range(1, 6))
        asked = self._decide(
            PredicateQuestion("The customer is angry.", "angry"),
            ChoiceQuestion("What is wanted?", options, "wanted"),
            ChoiceQuestion("What fits?", options, "fits", several=True),
            ScoreQuestion("How urgent is it?", levels, "urgency"),
        )
        found = await engine.decide(asked)
        angry, wanted, fits, urgency = found.items
        assert [one.name for one in found.items] == ["angry", "wanted", "fits", "urgency"]
        assert angry.value is (angry.probabilities[0] >= 0.5)
        assert wanted.value == labels[wanted.probabilities.index(max(wanted.probabilities))]
        likely = [x for x, p in zip(labels, fits.probabilities, strict=True) if p >= 0.5]
        assert fits.value == likely
        expected = sum(p * value for value, p in enumerate(urgency.probabilities, 1))
        assert urgency.value == pytest.approx(expected)
        for one in (angry, wanted, urgency):
            assert sum(one.probabilities) == pytest.approx(1, abs=1e-6)
        for one in found.items:
            assert all(0 <= p <= 1 for p in one.probabilities)
            assert 0 < one.mass <= 1
        assert found.usage.prompt_tokens > 0

    async def test_the_order_of_options_and_other_questions_change_no_probability(
        self, engine: LLMEngine
    ) -> None:
        _needs_decisions(engine)
        options = tuple(map(Option, ("refund", "repair", "repair at home")))
        # Without instructions the options are not listed.
        forth, back = ChoiceQuestion("", options), ChoiceQuestion("", options[::-1])
        other = PredicateQuestion("It is about a device.")
        alone = (await engine.decide(self._decide(forth))).items[0]
        many = [self._decide(back, other), self._decide(other, forth)] * 3
        for asked, found in zip(many, await asyncio.gather(*map(engine.decide, many)), strict=True):
            place = asked.questions.index(other) ^ 1
            same = found.items[place].probabilities[:: -1 if place == 0 else 1]
            assert same == pytest.approx(alone.probabilities, abs=1e-3)

    async def test_a_bad_question_is_refused_by_name(self, engine: LLMEngine) -> None:
        _needs_decisions(engine)
        good = PredicateQuestion("It is broken.")
        a, b = Option("a"), Option("b")
        bad: dict[str, tuple[Question, ...]] = {
            "1 to 400": (),
            "not 401": (good,) * 401,
            "'kind'": (good, ChoiceQuestion("Which?", (), "kind")),
            "'twice'": (ChoiceQuestion("Which?", (a, b, a), "twice"),),
            "'empty'": (ChoiceQuestion("Which?", (a, Option(" ")), "empty"),),
            "'same'": (good, ChoiceQuestion("", (a, b), "same"), PredicateQuestion("", "same")),
        }
        for name, questions in bad.items():
            with pytest.raises(RequestError, match=name) as caught:
                await engine.decide(self._decide(*questions))
            assert caught.value.status == 400


def _needs_decisions(engine: LLMEngine) -> None:
    if "decide" not in engine.capabilities.tasks:
        pytest.skip("no decisions")
