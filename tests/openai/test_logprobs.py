"""Log probabilities in the bodies of answers."""

import re
from typing import Any

import pytest

from penstock.batch.stages.tasks import sampling_of
from penstock.errors import RequestError
from penstock.openai.framing import CompletionFramer
from penstock.openai.parameters.body import parse_body
from penstock.openai.requests import CompletionBody
from penstock.openai.responses import (
    Answers,
    chat_completion,
    chat_logprobs,
    completion,
    completion_logprobs,
)
from penstock.types import Delta, TokenLogprob, Usage

FIRST = TokenLogprob("My", None, id=7, raw=b"My")
HALF = TokenLogprob(
    "\ufffd", -1.0, (("\ufffd", -1.0), ("a", -2.0)), 8, b"\xc3", 1, (8, 9), (b"\xc3", b"a")
)
OTHER_HALF = TokenLogprob("\ufffd", -0.5, (("b", -0.1),), 3, b"\xa9", 2, (4,), (b"b",))
AFTER = TokenLogprob("!", -0.2, id=5, raw=b"!")


def test_the_tokens_of_a_split_character_begin_where_it_does():
    body = completion_logprobs([FIRST, HALF, OTHER_HALF, AFTER])
    assert body is not None
    assert body["text_offset"] == [0, 2, 2, 3]
    assert body["token_logprobs"] == [None, -1.0, -0.5, -0.2]


def test_the_chosen_token_is_among_the_most_likely_ones():
    body = completion_logprobs([FIRST, OTHER_HALF, AFTER])
    assert body is not None
    assert body["top_logprobs"] == [None, {"bytes:\\xa9": -0.5, "b": -0.1}, None]


@pytest.mark.parametrize("text", ["", "\ufffd"])
def test_parts_of_characters_are_told_apart_by_their_bytes(text):
    top = ((text, -0.1), (text, -3.0), ("a", -4.0))
    body = completion_logprobs(
        [TokenLogprob(text, -3.0, top, raw=b"\xe6\xbc", top_raw=(b"\xe5", b"\xe6\xbc", b"a"))]
    )
    assert body is not None
    assert body["tokens"] == ["bytes:\\xe6\\xbc"]
    assert body["top_logprobs"] == [{"bytes:\\xe5": -0.1, "bytes:\\xe6\\xbc": -3.0, "a": -4.0}]
    body = completion_logprobs([TokenLogprob("token_id:5", -3.0, raw=b"\xe6")])
    assert body is not None
    assert body["tokens"] == ["token_id:5"]


def test_bytes_of_a_split_character_are_the_tokens_own():
    body = chat_logprobs([HALF])
    assert body is not None
    (token,) = body["content"]
    assert token["bytes"] == [0xC3]
    assert [top["bytes"] for top in token["top_logprobs"]] == [[0xC3], [ord("a")]]


def test_without_raw_bytes_the_text_gives_them():
    body = chat_logprobs([TokenLogprob("é", -1.0, (("é", -1.0),))])
    assert body is not None
    (token,) = body["content"]
    assert token["bytes"] == token["top_logprobs"][0]["bytes"] == list("é".encode())


def test_offsets_go_on_over_a_stream():
    framer = CompletionFramer(id="x", created=1, model="m")
    first = framer.frame(Delta(text="My", logprobs=(FIRST, HALF)))
    second = framer.frame(Delta(text="é!", logprobs=(OTHER_HALF, AFTER)))
    assert b'"text_offset":[0,2]' in first
    assert b'"text_offset":[2,3]' in second


def answers():
    collected = Answers()
    collected.add(
        Delta(
            text="!",
            logprobs=(AFTER,),
            prompt_logprobs=(FIRST, HALF),
            finish_reason="stop",
            usage=Usage(2, 1),
        )
    )
    return collected


def test_prompt_logprobs_have_vllms_form():
    about: dict[str, Any] = {"id": "x", "created": 1, "model": "m"}
    expected = [
        None,
        {
            "8": {"logprob": -1.0, "rank": 1, "decoded_token": "\ufffd"},
            "9": {"logprob": -2.0, "rank": 2, "decoded_token": "a"},
        },
    ]
    assert chat_completion(answers(), **about)["prompt_logprobs"] == expected
    (choice,) = completion([answers()], **about)["choices"]
    assert choice["prompt_logprobs"] == expected


def test_a_body_without_them_has_no_such_key():
    plain = Answers()
    plain.add(Delta(text="!", finish_reason="stop", usage=Usage(2, 1)))
    assert "prompt_logprobs" not in chat_completion(plain, id="x", created=1, model="m")


@pytest.mark.parametrize(
    "key", [" 4", "4 ", "+4", "-4", "04", "4_0", "4.0", "\u0664", "", "9" * 11, "9" * 9999]
)
def test_a_bias_has_keys_as_json_writes_integers(key):
    for read in (of_a_body, of_a_row):
        assert read({"999999999": 1, "0": 2}).logit_bias == ((999_999_999, 1), (0, 2))
        with pytest.raises(RequestError, match=re.escape(f"its key {key[:40]!r} is no token id")):
            read({key: 1})


def of_a_body(bias):
    (request,) = parse_body(CompletionBody, {"prompt": "a", "logit_bias": bias}).requests()
    return request.sampling


def of_a_row(bias):
    return sampling_of({"logit_bias": bias})[0]


def test_a_bias_has_token_ids_as_keys():
    body = parse_body(CompletionBody, {"prompt": "a", "logit_bias": {"5": -100, "7": 1.5}})
    (request,) = body.requests()
    assert request.sampling.logit_bias == ((5, -100), (7, 1.5))
