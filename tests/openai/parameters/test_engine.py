"""Parameters that only some engines understand: passed on where they say something, refused by name
where the engine has none of them.
"""

import pytest

from penstock.batch.stages.tasks import sampling_of
from penstock.engines.simulated.engine import SimulatedEngine
from penstock.errors import RequestError, UnsupportedError
from penstock.openai.parameters.body import parse_body
from penstock.openai.parameters.engine import DEFAULTS, MODEL_DEFAULTS, with_model_defaults
from penstock.openai.requests import ChatBody, CompletionBody
from penstock.openai.responses_api import ResponseBody
from penstock.testing import answer
from penstock.types import Sampling

CHAT = {"messages": [{"role": "user", "content": "Hello"}]}
GIVEN = {
    "skip_special_tokens": False,
    "include_stop_str_in_output": True,
    "truncate_prompt_tokens": 5,
    "cache_salt": "salt",
    "vllm_xargs": {"a": [1, "b"]},
}


def chat(**given):
    return parse_body(ChatBody, {**CHAT, **given}).request()


def test_what_is_given_travels_with_the_sampling():
    assert chat(**GIVEN).sampling.extra == GIVEN
    (completion,) = parse_body(CompletionBody, {"prompt": "a", **GIVEN}).requests()
    assert completion.sampling.extra == GIVEN
    assert sampling_of(GIVEN)[0].extra == GIVEN


@pytest.mark.parametrize("name", DEFAULTS)
def test_null_and_the_default_say_nothing(name):
    assert chat(**{name: None}).sampling.extra == {}
    assert chat(**{name: DEFAULTS[name]}).sampling.extra == {}
    assert sampling_of({name: DEFAULTS[name]})[0].extra == {}


@pytest.mark.parametrize("empty", [{"vllm_xargs": {}}, {"documents": []}])
def test_an_empty_one_says_nothing(empty):
    assert chat(**empty).sampling.extra == {}


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("skip_special_tokens", "no"),
        ("truncate_prompt_tokens", -2),
        ("truncation_side", "up"),
        ("cache_salt", ""),
        ("logprob_token_ids", [-1]),
        ("documents", ["text"]),
    ],
)
def test_a_wrong_value_is_refused_by_name(name, wrong):
    with pytest.raises(RequestError, match=name):
        chat(**{name: wrong})


@pytest.mark.parametrize("given", [{"cache_salt": "a"}, {"watermarking": True}])
async def test_an_engine_without_one_names_it_and_itself(given):
    engine = SimulatedEngine("small")
    await engine.start()
    try:
        with pytest.raises(
            UnsupportedError, match=f"simulated engine takes no {next(iter(given))}"
        ):
            await answer(engine, chat(**given))
    finally:
        await engine.stop()


def test_a_response_takes_the_same_parameters():
    given = {
        **GIVEN,
        "stop": "END",
        "seed": 3,
        "top_k": 5,
        "presence_penalty": 0.5,
        "logit_bias": {"7": -3},
        "ignore_eos": True,
        "bad_words": ["no"],
        "structured_outputs": {"regex": "a+"},
    }
    response = parse_body(ResponseBody, {"input": "Hello", "priority": 2, **given}).request()
    request = chat(priority=2, **given)
    assert response.sampling == request.sampling
    assert response.priority == request.priority == 2


def test_a_response_has_one_constraint():
    text = {"format": {"type": "json_object"}}
    body = parse_body(
        ResponseBody, {"input": "a", "text": text, "structured_outputs": {"regex": "a"}}
    )
    with pytest.raises(RequestError, match=r"text\.format and structured_outputs\.regex"):
        body.request()


def test_a_models_defaults_fill_what_a_request_leaves_out():
    defaults = {"temperature": 0.6, "top_p": 0.9}
    left = chat(top_p=1.0).sampling
    assert set(left.unset) == set(MODEL_DEFAULTS) - {"top_p"}
    filled = with_model_defaults(left, defaults)
    assert (filled.temperature, filled.top_p) == (0.6, 1.0)
    assert with_model_defaults(Sampling(), defaults) == Sampling()  # it states all of them
