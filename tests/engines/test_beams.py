"""What a beam search may be asked for, and what it does not go with."""

import pytest

from penstock.engines.beams import Beams, beams_of
from penstock.engines.simulated.engine import SimulatedEngine
from penstock.errors import RequestError, UnsupportedError
from penstock.openai.parameters.body import parse_body
from penstock.openai.requests import ChatBody, CompletionBody
from penstock.testing import answer, chat_request
from penstock.types import Sampling, StructuredOutput

SEARCH = {"use_beam_search": True}


def beams(n=4, sampling=None, **extra):
    sampling = sampling or Sampling()
    fields = {name: getattr(sampling, name) for name in sampling.__struct_fields__}
    return beams_of(Sampling(**{**fields, "extra": {**SEARCH, **extra}}), n)


def test_n_is_the_number_of_beams_unless_best_of_is_larger():
    assert beams() == Beams(4, 4)
    assert beams(2, best_of=6) == Beams(6, 2)
    assert beams(1) == Beams(1, 1)
    assert beams_of(Sampling(), 4) is None
    found = beams(
        6, num_beam_groups=3, diversity_penalty=0.5, length_penalty=-1.0, early_stopping="never"
    )
    assert found == Beams(6, 6, 3, 0.5, -1.0, "never")


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"best_of": 3}, "best_of"),
        ({"best_of": 129}, "best_of"),
        ({"length_penalty": 8.1}, "length_penalty"),
        ({"length_penalty": float("nan")}, "length_penalty"),
        ({"num_beam_groups": 3, "diversity_penalty": 1.0}, "num_beam_groups"),
        ({"num_beam_groups": 2}, "num_beam_groups"),
        ({"diversity_penalty": 1.0}, "diversity_penalty"),
        ({"num_beam_groups": 2, "diversity_penalty": -1.0}, "diversity_penalty"),
        ({"num_beam_groups": 2, "diversity_penalty": 101.0}, "diversity_penalty"),
    ],
)
def test_a_wrong_value_is_refused_by_name(given, param):
    with pytest.raises(RequestError) as caught:
        beams(**given)
    assert caught.value.param == param


@pytest.mark.parametrize(
    "name",
    ["best_of", "diversity_penalty", "early_stopping", "length_penalty", "num_beam_groups"],
)
def test_its_parameters_are_refused_without_it(name):
    with pytest.raises(RequestError, match=f"{name} needs use_beam_search"):
        beams_of(Sampling(extra={name: 2}), 4)


@pytest.mark.parametrize(
    "given",
    [
        {"temperature": 0.5},
        {"top_p": 0.9},
        {"top_k": 5},
        {"min_p": 0.1},
        {"min_tokens": 3},
        {"stop": ("a",)},
        {"logprobs": 0},
        {"prompt_logprobs": 0},
        {"logit_bias": ((1, 1.0),)},
        {"allowed_token_ids": (1,)},
        {"bad_words": ("a",)},
        {"presence_penalty": 0.1},
        {"frequency_penalty": 0.1},
        {"repetition_penalty": 1.1},
    ],
)
def test_what_does_not_go_with_it_is_refused_by_name(given):
    (name,) = given
    with pytest.raises(UnsupportedError, match=name) as caught:
        beams(sampling=Sampling(**given))
    assert caught.value.param == name


def test_all_that_does_not_go_with_it_is_named():
    sampling = Sampling(stop=("a",), top_k=3, structured=StructuredOutput("regex", "a"))
    with pytest.raises(UnsupportedError, match="stop and top_k and response_format"):
        beams(sampling=sampling)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_seed_and_a_temperature_that_change_nothing_are_taken(temperature):
    assert beams(sampling=Sampling(temperature=temperature, seed=5, stop_token_ids=(3,)))


def test_bodies_and_rows_carry_it():
    chat = {"messages": [{"role": "user", "content": "a"}], "n": 3, "length_penalty": 0.5}
    request = parse_body(ChatBody, {**chat, **SEARCH}).request()
    assert beams_of(request.sampling, request.n) == Beams(3, 3, length_penalty=0.5)
    asked = {"prompt": "a", "n": 2, "best_of": 5, **SEARCH}
    body = parse_body(CompletionBody, asked)
    (completion,) = body.requests()
    assert beams_of(completion.sampling, completion.n) == Beams(5, 2)
    assert completion.sampling.logprobs is None
    assert body.best is None


async def test_an_engine_without_it_refuses_by_name():
    engine = SimulatedEngine("any")
    await engine.start()
    with pytest.raises(UnsupportedError, match="takes no use_beam_search"):
        await answer(engine, chat_request("a", Sampling(extra=SEARCH)))
    await engine.stop()
