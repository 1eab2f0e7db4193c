"""Log probabilities and biased logits through the engine, on the demo model."""

import asyncio
import json
from types import SimpleNamespace
from typing import Any, cast
from weakref import WeakSet

import pytest
import pytest_asyncio

from penstock.engines.openvino.engine import OpenVINOEngine
from penstock.engines.openvino.logits.model import LogitModel, TokenScore
from penstock.engines.openvino.logits.scoring import Scoring, check_together
from penstock.engines.openvino.logits.second_copy import needs_scores
from penstock.errors import RequestError, UnsupportedError
from penstock.testing import answer, chat_request
from penstock.types import CompletionRequest, Sampling, StructuredOutput

PROMPT = "My Solara 77 is broken."


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine():
    engine = OpenVINOEngine("demo")
    await engine.start()
    yield engine
    await engine.stop()


pytestmark = pytest.mark.asyncio(loop_scope="module")


def greedy(**given):
    return Sampling(**{"temperature": 0.0, "max_tokens": 8, "ignore_eos": True, **given})


async def first_delta(engine, request):
    batches = engine.generate(request)
    async for batch in batches:
        await batches.aclose()
        return batch[0]


@pytest.mark.parametrize("stream", [True, False])
async def test_the_most_likely_tokens_of_each_place(engine, stream):
    sampling = Sampling(temperature=1.3, seed=4, max_tokens=8, ignore_eos=True, logprobs=5)
    tokens = (await answer(engine, chat_request(PROMPT, sampling, stream=stream))).logprobs[0]
    assert len(tokens) == 8
    for token in tokens:
        values = [value for _, value in token.top]
        assert len(values) == 5
        assert values == sorted(values, reverse=True)
        assert token.rank is not None
        assert token.logprob is not None
        if token.rank <= 5:
            assert token.top_ids[token.rank - 1] == token.id
            assert token.top[token.rank - 1][1] == pytest.approx(token.logprob, abs=1e-3)
        else:
            assert token.logprob <= values[-1]
        assert token.raw is not None
        assert len(token.top_raw) == 5


async def test_a_prompt_has_its_log_probabilities_cached_or_not(engine):
    request = CompletionRequest(PROMPT, greedy(prompt_logprobs=1, logprobs=0))
    ids = await engine.tokenize(PROMPT)
    seen = [(await first_delta(engine, request)).prompt_logprobs for _ in range(2)]
    assert seen[0] == seen[1]
    assert [token.id for token in seen[0]] == ids
    assert [token.logprob is None for token in seen[0]] == [True] + [False] * (len(ids) - 1)
    assert b"".join(token.raw for token in seen[0]).decode() == PROMPT


async def test_an_echo_has_the_prompts_log_probabilities(engine):
    request = CompletionRequest(PROMPT, greedy(logprobs=2, max_tokens=3), echo=True)
    result = await answer(engine, request)
    size = len(await engine.tokenize(PROMPT))
    assert result.texts[0].startswith(PROMPT)
    assert len(result.logprobs[0]) == size + 3
    assert [token.logprob is None for token in result.logprobs[0]].count(True) == 1


async def test_a_prompt_alone_is_scored_without_an_answer(engine):
    request = CompletionRequest(PROMPT, greedy(logprobs=0, max_tokens=0), echo=True)
    result = await answer(engine, request)
    assert result.texts[0] == PROMPT
    assert len(result.logprobs[0]) == len(await engine.tokenize(PROMPT))
    assert result.usage.completion_tokens == 0
    assert result.reasons[0] == "length"


async def test_an_answer_alone_needs_a_token(engine):
    with pytest.raises(RequestError, match="max_tokens"):
        await answer(engine, CompletionRequest(PROMPT, greedy(max_tokens=0)))


async def test_a_bias_forces_and_forbids_a_token(engine):
    (wanted, *_) = await engine.tokenize("Solara")
    forced = await answer(
        engine, chat_request(PROMPT, greedy(max_tokens=4, logit_bias=((wanted, 100.0),)))
    )
    assert forced.texts[0] == (await engine.detokenize([wanted])) * 4
    plain = await answer(engine, chat_request(PROMPT, greedy(logprobs=0)))
    banned = plain.logprobs[0][0].id
    other = await answer(
        engine, chat_request(PROMPT, greedy(logprobs=0, logit_bias=((banned, -100.0),)))
    )
    assert banned not in [token.id for token in other.logprobs[0]]


@pytest.mark.parametrize("stream", [True, False])
async def test_a_biased_answer_has_its_log_probabilities(engine, stream):
    given = {"max_tokens": 4, "logprobs": 3, "prompt_logprobs": 1}
    plain = await answer(engine, chat_request(PROMPT, greedy(**given), stream=stream))
    request = chat_request(PROMPT, greedy(logit_bias=((5, 0.0),), **given), stream=stream)
    biased = await answer(engine, request)
    assert len(biased.logprobs[0]) == 4
    for one, other in zip(plain.logprobs[0], biased.logprobs[0], strict=True):
        assert (one.id, one.rank, one.top_ids) == (other.id, other.rank, other.top_ids)
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)


async def test_a_bias_of_nothing_changes_nothing(engine):
    plain = await answer(engine, chat_request(PROMPT, greedy()))
    biased = await answer(engine, chat_request(PROMPT, greedy(logit_bias=((5, 0.0),))))
    assert biased.texts == plain.texts


async def test_allowed_tokens_and_bad_words(engine):
    allowed = tuple(await engine.tokenize("broken late"))
    result = await answer(
        engine, chat_request(PROMPT, greedy(allowed_token_ids=allowed, logprobs=0))
    )
    assert {token.id for token in result.logprobs[0]} <= set(allowed)
    plain = (await answer(engine, chat_request(PROMPT, greedy(max_tokens=30)))).texts[0]
    word = "technical"
    assert word in plain
    without = await answer(engine, chat_request(PROMPT, greedy(max_tokens=30, bad_words=(word,))))
    assert word not in without.texts[0]


async def test_biased_and_plain_requests_run_side_by_side(engine):
    alone = await answer(engine, chat_request(PROMPT, greedy()))
    (wanted, *_) = await engine.tokenize("Solara")
    results = await asyncio.gather(
        *(answer(engine, chat_request(PROMPT, greedy())) for _ in range(3)),
        *(
            answer(engine, chat_request(PROMPT, greedy(logit_bias=((wanted, 100.0),), logprobs=2)))
            for _ in range(3)
        ),
    )
    assert [result.texts for result in results[:3]] == [alone.texts] * 3
    assert len({result.texts[0] for result in results[3:]}) == 1


async def test_a_client_that_leaves_frees_what_it_read(engine):
    request = CompletionRequest(PROMPT * 20, greedy(prompt_logprobs=1, max_tokens=60))
    await first_delta(engine, request)
    biased = chat_request(PROMPT, greedy(logit_bias=((5, 1.0),), max_tokens=60), stream=True)
    await first_delta(engine, biased)
    assert (await answer(engine, chat_request(PROMPT, greedy()))).reasons[0] == "length"


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"logit_bias": ((10**6, 1.0),)}, "token ids"),
        ({"logit_bias": ((5, 101.0),)}, "-100 to 100"),
        ({"allowed_token_ids": (10**6,)}, "token ids"),
        ({"bad_words": ("",)}, "bad_words"),
        ({"logprobs": 21}, "at most 20"),
        ({"prompt_logprobs": 21}, "between 0 and 20"),
        ({"logit_bias": ((5, 1.0),), "structured": StructuredOutput("json_object")}, "constraint"),
    ],
)
async def test_what_cannot_be_done_is_refused(engine, given, match):
    with pytest.raises((RequestError, UnsupportedError), match=match):
        await answer(engine, chat_request(PROMPT, greedy(**given)))


@pytest.mark.parametrize("biased", [(), ((5, 1.0),)])
async def test_a_stop_token_ends_an_answer_that_goes_on_past_its_end(engine, biased):
    extra = {"return_token_ids": True}
    free = await answer(engine, chat_request(PROMPT, greedy(max_tokens=4, extra=extra)))
    stop = free.token_ids[0][-1]
    sampling = greedy(max_tokens=60, stop_token_ids=(stop,), logit_bias=biased, extra=extra)
    ended = await answer(engine, chat_request(PROMPT, sampling))
    assert ended.reasons == {0: "stop"}
    assert ended.stop_tokens == {0: stop}
    assert ended.token_ids == free.token_ids


async def test_an_answer_that_ignores_its_end_ends_with_its_constraint(engine):
    sampling = greedy(max_tokens=200, structured=StructuredOutput("json_object"))
    ended = await answer(engine, chat_request(PROMPT, sampling))
    assert ended.reasons == {0: "stop"}
    json.loads(ended.texts[0])


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"allowed_token_ids": (5,)}, "allowed_token_ids"),
        ({"bad_words": ("a",)}, "bad_words"),
        ({"logit_bias": ((5, 1.0),)}, "logit_bias"),
        ({"prompt_logprobs": 1}, "prompt_logprobs"),
        ({"logprobs": 2}, "logprobs"),
    ],
)
async def test_the_parameter_that_was_given_is_named(given, param):
    request: Any = SimpleNamespace(sampling=greedy(**given), adapter="german")
    with pytest.raises(UnsupportedError) as caught:
        check_together(request, 1024)
    assert caught.value.param == param


class Model:
    """Begins as many sequences as it has room for, and reads four tokens a turn."""

    chunk = asked = 4
    outgrown = False
    make_room = LogitModel.make_room

    @property
    def is_over(self):
        return self.outgrown and len(self.begun) > 1

    def __init__(self):
        self.begun: WeakSet[Reading] = WeakSet()
        self.room = 1

    def begin_if_fits(self, tokens):
        if len(self.begun) >= self.room:
            return None
        self.begun.add(reading := Reading())
        return reading


class Reading:
    def add(self, ids, top=0, silent=False):
        return [] if silent else [TokenScore(token, 0.0, 1, []) for token in ids]


class Asked:
    def __init__(self, **sampling):
        self.sampling = Sampling(**sampling)
        self.prompt = [1, 2, 3, 4]
        self.prompt_tokens, self.max_new_tokens = 4, 8
        self.ids = []


def scoring(*requests):
    model = Model()
    logits: Any = SimpleNamespace(model=lambda: model, rest=lambda: None)
    made, lane = Scoring(logits), cast("Any", None)
    for request in requests:
        made.begin(lane, request)

    def turn():
        return [scored.request for scored in made.turn(fail)]

    def fail(request, error):
        raise error

    return made, model, turn


async def test_who_has_no_room_for_a_cache_waits():
    first, second = Asked(logprobs=2), Asked(logprobs=2)
    made, _, turn = scoring(first, second)
    assert turn() == [first]
    assert turn() == []
    first.ids.append(7)
    assert made.note(first)
    assert turn() == [first]  # though the other came before
    assert made.of(first).whole
    made.forget(first)
    assert turn() == [second]


async def test_a_cache_is_given_back_where_only_the_prompt_is_asked():
    first, second = Asked(prompt_logprobs=1), Asked(prompt_logprobs=1)
    made, model, turn = scoring(first, second)
    assert turn() == [first]
    assert not model.begun
    assert not made.note(first)
    assert turn() == [second]


async def test_a_biased_answer_is_scored_in_its_lane_with_the_room_of_its_prompt():
    bias = ((5, 1.0),)
    assert not needs_scores(greedy(logprobs=5, logit_bias=bias))
    both = Asked(prompt_logprobs=1, logprobs=5, logit_bias=bias)
    made, model, turn = scoring(both)
    assert turn() == [both]
    assert not model.begun  # else its lane would wait for it, and it for the lane
    assert not made.note(both)


async def test_a_cache_that_another_needs_is_given_up_and_made_again():
    first, second = Asked(logprobs=2), Asked(logprobs=2)
    made, model, turn = scoring(first, second)
    model.room = 2
    assert turn() + turn() == [first, second]
    second.ids.append(7)
    made.note(second)
    assert turn() == [second]
    model.outgrown = True
    first.ids.append(8)
    made.note(first)
    assert turn() == [first]  # and the other gives way
    assert len(model.begun) == 1
    model.outgrown = False
    second.ids.append(9)
    made.note(second)
    assert [turn() for _ in range(3)] == [[], [second], []]
    assert [score.token for score in made.of(second).answer] == [7, 9]
