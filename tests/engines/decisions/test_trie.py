"""Probabilities of labels, from those of tokens."""

import math

import pytest

from penstock.engines.decisions.trie import Trie, shares
from penstock.errors import EngineError


def logs(**chances):
    return [math.log(chance) for chance in chances.values()]


def test_one_token_a_label_is_normalised():
    found = shares(Trie([(1,), (2,)]), {(): logs(a=0.3, b=0.1)})
    assert found.probabilities == pytest.approx([0.75, 0.25])
    assert found.mass == pytest.approx(0.4)


def test_only_places_where_labels_part_count():
    trie = Trie([(1, 7, 8), (2,)])
    assert trie.parting == {(): (1, 2)}
    assert shares(trie, {(): logs(a=0.2, b=0.2)}).probabilities == [0.5, 0.5]


def test_labels_that_begin_alike_share_their_beginning():
    trie = Trie([(1, 5), (1, 6), (2,)])
    assert trie.parting == {(): (1, 2), (1,): (5, 6)}
    found = shares(trie, {(): logs(a=0.6, b=0.2), (1,): logs(a=0.1, b=0.3)})
    assert found.probabilities == pytest.approx([0.75 * 0.25, 0.75 * 0.75, 0.25])


def test_a_label_that_ends_where_another_goes_on_has_the_rest():
    trie = Trie([(1,), (1, 5), (2,)])
    assert trie.parting == {(): (1, 2), (1,): (5,)}
    found = shares(trie, {(): logs(a=0.5, b=0.5), (1,): logs(a=0.2)})
    assert found.probabilities == pytest.approx([0.4, 0.1, 0.5])


def test_labels_that_begin_alike_have_the_mass_of_where_they_part():
    found = shares(Trie([(1, 5), (1, 6)]), {(1,): logs(a=0.1, b=0.3)})
    assert found.probabilities == pytest.approx([0.25, 0.75])
    assert found.mass == pytest.approx(0.4)


def test_where_the_model_gives_nothing_all_are_alike():
    found = shares(Trie([(1,), (2,)]), {(): [-math.inf, -math.inf]})
    assert found.probabilities == [0.5, 0.5]
    assert found.mass == 0


@pytest.mark.parametrize("paths", [[(1,), (2,)], [(1,), (1, 5)]])
def test_what_is_no_number_is_no_probability(paths):
    trie = Trie(paths)
    with pytest.raises(EngineError, match="no numbers"):
        shares(trie, {place: [math.nan for _ in tokens] for place, tokens in trie.parting.items()})


def test_the_sum_is_1_for_many_labels():
    paths = [(number // 10, number % 10) for number in range(100)]
    trie = Trie(paths)
    logprobs = {
        place: [-20.0 - (7 * n) % 30 for n in range(10)] for n, place in enumerate(trie.parting)
    }
    assert sum(shares(trie, logprobs).probabilities) == pytest.approx(1, abs=1e-6)
