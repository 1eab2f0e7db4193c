"""Sampling with changed logits, on rows of logits written by hand."""

from typing import Any
from weakref import WeakSet

import numpy as np
import pytest

from penstock.engines.openvino.logits.biased import BiasedPipeline, Handle, choose
from penstock.engines.openvino.logits.model import LogitModel
from penstock.types import Sampling

LOGITS = np.array([1.0, 3.0, 2.0, -1.0], np.float32)


def handle(bad_words=(), made=(), **sampling):
    given = {"temperature": 0.0, **sampling}
    made_handle = Handle([0], Sampling(**given), 8, {1}, [list(word) for word in bad_words])
    made_handle.ids = list(made)
    return made_handle


def chosen(one):
    found = choose(LOGITS, one)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("given", "token"),
    [
        ({}, 1),
        ({"logit_bias": ((2, 1.5),)}, 2),
        ({"logit_bias": ((2, 0.75), (2, 0.75))}, 2),
        ({"logit_bias": ((1, -100.0),)}, 2),
        ({"allowed_token_ids": (0, 3)}, 0),
        ({"bad_words": [[1]]}, 2),
        ({"bad_words": [[3, 1]]}, 1),
        ({"bad_words": [[3, 1]], "made": [3]}, 2),
        ({"bad_words": [[3, 1]], "made": [3, 0]}, 1),
        ({"min_tokens": 1}, 2),  # token 1 ends an answer
        ({"presence_penalty": 1.5, "made": [1]}, 2),
        ({"frequency_penalty": 0.6, "made": [1, 1]}, 2),
        ({"frequency_penalty": 0.4, "made": [1, 1]}, 1),
        ({"repetition_penalty": 2.0, "made": [1]}, 2),
    ],
)
def test_the_likeliest_token_after_the_changes(given, token):
    assert chosen(handle(**given)) == token


@pytest.mark.parametrize("top", [0, 1, 3])
def test_the_log_probabilities_are_those_before_the_changes(top):
    one = handle(logit_bias=((1, -100.0),), logprobs=top)
    one.take(chosen(one), LOGITS)
    (output,) = one.read_all()
    (score,) = output.generated_log_probs
    logprobs = np.log(np.exp(LOGITS) / np.exp(LOGITS).sum())
    assert (score.token, score.rank) == (2, 2)
    assert score.logprob == pytest.approx(logprobs[2])
    assert [token for token, _ in score.top] == [1, 2, 0][:top]
    assert [value for _, value in score.top] == pytest.approx(logprobs[[1, 2, 0][:top]])


def test_nobody_pays_for_log_probabilities_that_nobody_asks_for():
    one = handle(logit_bias=((1, -100.0),))
    one.take(chosen(one), LOGITS)
    assert one.read_all()[0].generated_log_probs == []


@pytest.mark.parametrize(
    ("given", "possible"),
    [
        ({}, {0, 1, 2, 3}),
        ({"top_k": 2}, {1, 2}),
        ({"top_p": 0.7}, {1, 2}),
        ({"top_p": 0.6}, {1}),
        ({"min_p": 0.3}, {1, 2}),
        ({"top_k": 1, "logit_bias": ((3, 50.0),)}, {3}),
    ],
)
def test_what_sampling_leaves(given, possible):
    one = handle(temperature=1.0, seed=7, **given)
    assert {chosen(one) for _ in range(400)} == possible


def test_a_seed_repeats_the_answer():
    def drawn():
        one = handle(temperature=1.0, seed=3, logit_bias=((0, 1.0),))
        return [chosen(one) for _ in range(20)]

    assert drawn() == drawn()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    "given",
    [
        {"allowed_token_ids": (2,), "bad_words": [[2]]},
        {"allowed_token_ids": (1,), "min_tokens": 1},  # token 1 ends an answer
    ],
)
def test_an_answer_ends_where_no_token_is_allowed(given, temperature):
    one = handle(temperature=temperature, **given)
    assert choose(LOGITS, one) is None
    one.end()
    (output,) = one.read_all()
    assert (output.generated_ids, output.finish_reason.name) == ([], "STOP")


def test_a_bad_word_without_tokens_forbids_nothing():
    assert chosen(handle(bad_words=[[]])) == 1


def test_a_seed_may_be_negative():
    assert choose(LOGITS, handle(temperature=1.0, seed=-1)) is not None


class Model:
    """Holds `room` tokens."""

    chunk = 4
    make_room = LogitModel.make_room

    def __init__(self, room):
        self.room = room
        self.begun: WeakSet[Reading] = WeakSet()

    def begin_if_fits(self, tokens):
        if self.begun and self.held + tokens > self.room:
            return None
        reading = Reading()
        self.begun.add(reading)
        return reading

    @property
    def is_over(self):
        return len(self.begun) > 1 and self.held > self.room

    @property
    def held(self):
        return sum(len(one.ids) for one in self.begun)


class Reading:
    def __init__(self):
        self.ids = []
        self.after = None

    def add(self, ids, top=0, silent=False):
        self.ids += ids
        self.after = LOGITS
        return []


def steps(room, tokens):
    """How many tokens two requests have after each step, until both have all."""
    model: Any = Model(room)
    pipeline = BiasedPipeline(lambda: model)
    given = Sampling(temperature=0.0), tokens, set[int](), list[list[int]]()
    first, second = (pipeline.add(Handle([0], *given)) for _ in range(2))
    while len(second.ids) < tokens:
        pipeline.step()
        yield len(first.ids), len(second.ids)


def test_who_has_no_room_for_a_cache_waits():
    assert list(steps(room=1, tokens=2)) == [(1, 0), (2, 1), (2, 2)]


def test_a_cache_that_another_needs_is_given_up_and_made_again():
    made = list(steps(room=5, tokens=4))
    assert made == [(1, 1), (2, 2), (3, 2), (4, 3), (4, 4)]
