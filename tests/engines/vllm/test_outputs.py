from types import SimpleNamespace

import pytest

from penstock.engines.vllm.translation import DeltaMaker
from penstock.errors import EngineError
from penstock.types import TokenLogprob, Usage


def answer(text="", ids=(), index=0, reason=None, logprobs=None, stop=None):
    return SimpleNamespace(
        text=text,
        token_ids=ids,
        index=index,
        finish_reason=reason,
        logprobs=logprobs,
        stop_reason=stop,
    )


def output(*answers):
    return SimpleNamespace(
        outputs=answers,
        prompt_token_ids=[1, 2, 3],
        encoder_prompt_token_ids=None,
        num_cached_tokens=2,
        kv_transfer_params={"block": 7},
    )


def test_deltas_count_the_tokens_of_each_answer():
    maker = DeltaMaker(None)
    assert maker.deltas(output(answer())) == []  # a chunk of the prompt
    made = maker.deltas(output(answer("a", [5]), answer("b", [6, 7], index=1)))
    assert [(delta.index, delta.text, delta.token_ids, delta.usage) for delta in made] == [
        (0, "a", (5,), Usage(3, 0, 2)),
        (1, "b", (6, 7), None),
    ]
    (last,) = maker.deltas(output(answer("c", [8], index=1, reason="stop", stop="END")))
    assert last.stop == "END"
    assert last.usage == Usage(3, 3, 2)
    assert last.kv_transfer_params == {"block": 7}
    (ended,) = maker.deltas(output(answer(reason="repetition", stop=7)))
    assert (ended.finish_reason, ended.stop) == ("stop", None)


def test_a_request_that_failed_inside_is_an_error():
    with pytest.raises(EngineError):
        DeltaMaker(None).deltas(output(answer(reason="error")))


def test_the_top_log_probabilities_are_the_likeliest_whatever_was_chosen():
    step = {
        5: SimpleNamespace(decoded_token="e", logprob=float("-inf")),
        1: SimpleNamespace(decoded_token="a", logprob=-0.1),
        2: SimpleNamespace(decoded_token="b", logprob=-2.0),
    }
    (delta,) = DeltaMaker(2).deltas(output(answer("e", [5], logprobs=[step])))
    assert delta.logprobs == (TokenLogprob("e", -9999.0, (("a", -0.1), ("b", -2.0))),)
    (delta,) = DeltaMaker(0).deltas(output(answer("e", [5], logprobs=[step])))
    assert delta.logprobs == (TokenLogprob("e", -9999.0),)
