"""What a request's sampling parameters may be, whatever the engine."""

import pytest

from penstock.engines.base import Capabilities
from penstock.engines.text.sampling_checks import (
    LONGEST_STOP,
    MAX_STOPS,
    check_json_schema,
    check_sampling,
    check_token_ids,
)
from penstock.errors import RequestError
from penstock.types import Sampling, StructuredOutput

ANY = Capabilities(
    tasks=frozenset({"chat"}), context_length=100, max_concurrency=1, max_top_logprobs=5
)
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("temperature", [1e-320, 1e-45, 1e-39, -1e-9, 2.1, NAN, INF, True, "1", 10**400]),
        ("top_p", [0, 1e-320, 1e-46, 1.1, NAN, -0.0, None]),
        ("min_p", [-0.1, 1.1, NAN]),
        ("presence_penalty", [2.1, NAN, -INF]),
        ("frequency_penalty", [-2.1, NAN]),
        ("repetition_penalty", [0, 1e-46, 1e-45, 1e-38, 1e39, NAN, INF, -1]),
        ("seed", [2**63, -(2**63) - 1, 10**5000, 1.0, True]),
        ("top_k", [-2, 2**64, 1.5]),
        ("max_tokens", [0, 2**70, True]),
        ("min_tokens", [-1, 2**64]),
        ("stop", [("",), ("a" * (LONGEST_STOP + 1),), ("a",) * (MAX_STOPS + 1), (1,)]),
        ("stop_token_ids", [(-1,), (2**31,), (True,), ("1",), (1.0,)]),
    ],
)
def test_values_that_no_engine_can_take_are_refused_by_name(name, values):
    for value in values:
        with pytest.raises(RequestError) as refused:
            check_sampling(Sampling(**{name: value}), 1, ANY, "any")
        assert refused.value.param == name


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=-0.0),
        Sampling(temperature=2.0**-126),
        Sampling(min_p=1),
        Sampling(min_p=1e-320),
        Sampling(top_p=1e-37),
        Sampling(seed=-(2**63)),
        Sampling(top_k=2**63 - 1),
        Sampling(stop=("\0", "é")),
        Sampling(presence_penalty=1e-320),
    ],
)
def test_values_at_the_edges_are_taken(sampling):
    check_sampling(sampling, 1, ANY, "any")


@pytest.mark.parametrize("ids", [[-1], [2**31], [True], [1.0], ["1"], [None], [2**70]])
def test_token_ids_are_whole_numbers(ids):
    with pytest.raises(RequestError):
        check_token_ids(ids, "prompt")
    check_token_ids([0, 2**31 - 1], "prompt")
    check_token_ids([], "prompt")


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ('{"type": "objet"}', "not valid at type"),
        ("{", "not valid JSON"),
        ("3", "must be an object"),
        ('{"items": ' * 300 + "{}" + "}" * 300, "nested too deep"),
        ("[" * 100_000, "nested too deep"),
        ('{"$schema": "https://example.org/none"}', "no draft"),
    ],
)
def test_a_schema_that_is_none_is_refused_in_words_of_our_own(spec, told):
    with pytest.raises(RequestError, match=told):
        check_json_schema(spec)


def test_an_endless_constraint_is_refused_by_its_size():
    capabilities = Capabilities(frozenset(), 0, 1, frozenset({"regex"}))
    sampling = Sampling(structured=StructuredOutput("regex", "a" * 300_000))
    with pytest.raises(RequestError, match="300,000 characters"):
        check_sampling(sampling, 1, capabilities, "any")
