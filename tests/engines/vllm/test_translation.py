"""The shortcut from text to tokens is taken only where it agrees with the renderer; outputs become
deltas.
"""

from types import SimpleNamespace

import pytest

from penstock.engines.templates.chat_template import ChatTemplate
from penstock.engines.vllm.translation import DeltaMaker, PlainText
from penstock.errors import EngineError
from penstock.types import (
    Message,
    Sampling,
    TokenLogprob,
    Usage,
)

TEMPLATE = ChatTemplate("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}")
STRICT = ChatTemplate(
    "{% for m in messages %}{{ raise_exception('none') if m.role == 'system' }}{{ m.content }}{%"
    " endfor %}"
)
ASKED: list[Message] = [{"role": "user", "content": "Hello"}]
BOS = 1


class Bytes:
    """A tokenizer of bytes, with one special token."""

    truncation = padding = None

    def encode(self, text, add_special_tokens=True):
        return SimpleNamespace(
            ids=[BOS] * add_special_tokens + [byte + 2 for byte in text.encode()]
        )


def tokens(ids):
    return {"type": "token", "prompt_token_ids": ids}


def renderer(template, change=lambda text: text):
    """What vLLM's would make, with a change that it makes to texts."""
    return lambda messages: tokens(Bytes().encode(change(template.render(messages)), False).ids)


def completions(text, special):
    return tokens(Bytes().encode(text, special).ids)


def learned(chat, text=completions, template=TEMPLATE, backend=None):
    plain = PlainText(backend or Bytes(), template)
    plain.learn(chat, text)
    return plain


def test_before_it_was_tried_the_renderer_is_asked():
    plain = PlainText(Bytes(), TEMPLATE)
    assert plain.chat(ASKED) is None
    assert plain.text("Hello", True) is None


def test_what_comes_out_alike_is_made_here():
    plain = learned(renderer(TEMPLATE))
    assert plain.chat(ASKED) == Bytes().encode("<user>Hello", False).ids
    for special in (True, False):
        assert plain.text("Hello", special) == Bytes().encode("Hello", special).ids


@pytest.mark.parametrize("change", [str.strip, str.lower, lambda text: text + "!"])
def test_a_renderer_that_changes_texts_is_left_to_it(change):
    plain = learned(
        renderer(TEMPLATE, change), lambda text, special: completions(change(text), special)
    )
    assert plain.chat(ASKED) is None
    assert plain.text("Hello", True) is None


def test_conversations_that_the_template_refuses_are_refused_by_the_renderer():
    plain = learned(renderer(STRICT), template=STRICT)
    assert plain.chat(ASKED) is not None
    assert plain.chat([{"role": "system", "content": "Be brief."}, *ASKED]) is None


def test_messages_with_more_than_text_are_the_renderers():
    plain = learned(renderer(TEMPLATE))
    assert plain.chat([{**ASKED[0], "name": "Ada"}]) is None
    assert plain.chat([*ASKED, {"role": "assistant", "content": None, "tool_calls": []}]) is None


def test_a_renderer_that_fails_or_makes_more_than_tokens_is_left_to_it():
    def fail(*_):
        raise ValueError("no picture")

    plain = learned(fail, fail)
    assert plain.chat(ASKED) is plain.text("Hello", True) is None
    plain = learned(lambda messages: {"type": "enc_dec"}, lambda text, special: {"type": "enc_dec"})
    assert plain.chat(ASKED) is plain.text("Hello", True) is None
    assert learned(renderer(TEMPLATE), template=None).chat(ASKED) is None


@pytest.mark.parametrize("setting", ["truncation", "padding"])
def test_a_tokenizer_that_cuts_or_pads_is_not_used(setting):
    backend = Bytes()
    setattr(backend, setting, {"max_length": 512})
    assert learned(renderer(TEMPLATE), backend=backend).chat(ASKED) is None


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
        prompt_logprobs=None,
        kv_transfer_params={"block": 7},
    )


def test_deltas_count_the_tokens_of_each_answer():
    maker = DeltaMaker(Sampling())
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
        DeltaMaker(Sampling()).deltas(output(answer(reason="error")))


def test_the_top_log_probabilities_are_the_likeliest_whatever_was_chosen():
    step = {
        5: SimpleNamespace(decoded_token="e", logprob=float("-inf"), rank=3),
        1: SimpleNamespace(decoded_token="a", logprob=-0.1, rank=1),
        2: SimpleNamespace(decoded_token="b", logprob=-2.0, rank=2),
    }
    (delta,) = DeltaMaker(Sampling(logprobs=2)).deltas(output(answer("e", [5], logprobs=[step])))
    top = (("a", -0.1), ("b", -2.0))
    assert delta.logprobs == (TokenLogprob("e", -9999.0, top, id=5, rank=3, top_ids=(1, 2)),)
    (delta,) = DeltaMaker(Sampling(logprobs=0)).deltas(output(answer("e", [5], logprobs=[step])))
    assert delta.logprobs == (TokenLogprob("e", -9999.0, id=5, rank=3),)


def test_log_probabilities_of_a_prompt_come_with_each_answers_first_delta():
    made = output(answer("a", [5]), answer("b", [6], index=1))
    entry = SimpleNamespace(decoded_token="x", logprob=-0.5, rank=1)
    made.prompt_token_ids = [1, 2]
    made.prompt_logprobs = [None, {2: entry}]
    maker = DeltaMaker(Sampling(prompt_logprobs=0), "<{}>".format)
    of_prompt = (TokenLogprob("<1>", None, id=1), TokenLogprob("x", -0.5, id=2, rank=1))
    assert [delta.prompt_logprobs for delta in maker.deltas(made)] == [of_prompt] * 2
    made = output(answer("c", [7], reason="stop"))
    assert maker.deltas(made)[0].prompt_logprobs is None


def test_tokens_are_named_by_their_ids_where_the_request_wants_it():
    step = {5: SimpleNamespace(decoded_token="e", logprob=-0.5, rank=1)}
    sampling = Sampling(logprobs=1, extra={"return_tokens_as_token_ids": True})
    (delta,) = DeltaMaker(sampling).deltas(output(answer("e", [5], logprobs=[step])))
    (token,) = delta.logprobs or ()
    assert (token.token, token.raw, token.top) == ("token_id:5", b"e", (("token_id:5", -0.5),))


def test_a_request_that_asks_for_token_ids_gets_those_of_the_prompt_once():
    maker = DeltaMaker(Sampling(extra={"return_token_ids": True}))
    first, second = output(answer("a", [5])), output(answer("b", [6], reason="stop"))
    assert [maker.deltas(one)[0].prompt_token_ids for one in (first, second)] == [(1, 2, 3), None]
