"""What a request's sampling parameters may be, whatever the engine."""

import msgspec
import pytest
from hypothesis import given, strategies as st

from penstock.engines.base import Capabilities
from penstock.engines.sampling import (
    LONGEST_BAD_WORD,
    LONGEST_STOP,
    MAX_BAD_WORDS,
    MAX_STOPS,
    MOST_IDS,
    StopStrings,
    check_json_schema,
    check_sampling,
    check_token_ids,
    with_seed,
)
from penstock.engines.simulated.engine import SimulatedEngine
from penstock.errors import RequestError
from penstock.types import ChatRequest, CompletionRequest, Sampling, StructuredOutput

ANY = Capabilities(
    tasks=frozenset({"chat"}),
    context_length=100,
    max_concurrency=1,
    max_top_logprobs=5,
    logit_bias=True,
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
        ("stop_token_ids", [(-1,), (2**31,), (True,), ("1",), (1.0,), (1,) * (MOST_IDS + 1)]),
        ("allowed_token_ids", [(1,) * (MOST_IDS + 1)]),
        ("bad_words", [("",), ("a" * (LONGEST_BAD_WORD + 1),), ("a",) * (MAX_BAD_WORDS + 1)]),
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


@pytest.mark.parametrize("pattern", [r"(?<y>\d{4})", r"\p{L}", r"\u{1F600}"])
def test_what_is_a_regular_expression_is_said_by_who_reads_it(pattern):
    """ECMAScript's are not Python's."""
    capabilities = Capabilities(frozenset(), 0, 1, frozenset({"regex"}))
    sampling = Sampling(structured=StructuredOutput("regex", pattern))
    check_sampling(sampling, 1, capabilities, "an")


def test_an_endless_constraint_is_refused_by_its_size():
    capabilities = Capabilities(frozenset(), 0, 1, frozenset({"regex"}))
    sampling = Sampling(structured=StructuredOutput("regex", "a" * 300_000))
    with pytest.raises(RequestError, match="300,000 characters"):
        check_sampling(sampling, 1, capabilities, "any")


ASK = ChatRequest([{"role": "user", "content": "Name a river."}], Sampling(temperature=0.8))


def seed(request, **changes):
    return with_seed(msgspec.structs.replace(request, **changes)).sampling.seed


def test_the_same_request_has_the_same_seed_and_another_one_another():
    same = [seed(ASK), seed(ASK), seed(ASK, request_id="x", stream=False, n=3)]
    other = [
        seed(ASK, messages=[{"role": "user", "content": "Name a lake."}]),
        seed(ASK, adapter="short"),
        seed(CompletionRequest("Name a river.", Sampling())),
        seed(CompletionRequest([1, 2, 3], Sampling())),
    ]
    assert len(set(same)) == 1
    assert len({*same, *other}) == 5
    assert all(0 <= value < 1 << 31 for value in (*same, *other))


@pytest.mark.parametrize(
    "sampling", [Sampling(temperature=0), Sampling(seed=5), Sampling(temperature=0, seed=5)]
)
def test_one_that_needs_no_seed_stays_as_it_is(sampling):
    request = msgspec.structs.replace(ASK, sampling=sampling)
    assert with_seed(request) is request


@pytest.mark.parametrize("n", [1, 3])
async def test_a_deterministic_engine_samples_the_same_again(n):
    answers = []
    for deterministic in (True, True, False):
        engine = SimulatedEngine(
            engine_kwargs={"deterministic": deterministic, "output_tokens": 64}
        )
        await engine.start()
        found: dict[int, str] = {}
        async for delta in engine.chat(msgspec.structs.replace(ASK, n=n)):
            found[delta.index] = found.get(delta.index, "") + delta.text
        answers.append(found)
        await engine.stop()
    assert answers[0] == answers[1] != answers[2]
    assert len(set(answers[0].values())) == n


def shown(pieces, stop):
    cutter = StopStrings(stop)
    text = "".join(cutter.push(piece) for piece in pieces)
    return text + ("" if cutter.stopped else cutter.flush()), cutter.stopped


def test_without_stop_strings_text_passes_at_once():
    assert StopStrings(()).push("abc") == "abc"


def test_a_stop_string_in_pieces_is_never_shown():
    assert shown(["Hello E", "N", "D and more"], ("END",)) == ("Hello ", True)


def test_what_only_looked_like_one_is_shown_later():
    cutter = StopStrings(("END",))
    assert cutter.push("the EN") == "the "
    assert cutter.push("GAGED") == "ENGAGED"
    assert not cutter.stopped


def test_the_first_of_several_wins():
    assert shown(["a|b;c"], (";", "|")) == ("a", True)


def test_nothing_comes_after_the_stop():
    cutter = StopStrings(("x",))
    cutter.push("axb")
    assert cutter.push("more") == ""
    assert cutter.flush() == ""


@given(
    st.text("ab", max_size=30),
    st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
    st.data(),
)
def test_pieces_make_no_difference(text, stop, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    found = [at for s in stop if (at := text.find(s)) >= 0]
    # Piece by piece the stop string that ends first is met first, so where the cut begins may
    # differ.
    result, stopped = shown(pieces, tuple(stop))
    assert stopped == bool(found)
    if not found:
        assert result == text
    else:
        assert text.startswith(result)
        assert not any(s in result for s in stop)
