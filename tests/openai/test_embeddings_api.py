"""Bodies of requests for vectors of conversations and images."""

from __future__ import annotations

from typing import Any

import pytest

from penstock.errors import RequestError
from penstock.openai.embeddings_api import EmbeddingBody
from penstock.openai.parameters.body import parse_body
from penstock.types import ChatRequest

IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
TEXT = {"type": "text", "text": "a"}


def inputs(**body: Any) -> list[Any]:
    return list(parse_body(EmbeddingBody, body).request().inputs)


def shown(**body: Any) -> list[Any]:
    return [one.messages if isinstance(one, ChatRequest) else one for one in inputs(**body)]


def test_each_form_names_its_conversations() -> None:
    turn = {"role": "user", "content": [IMAGE, TEXT]}
    assert shown(messages=[turn]) == shown(input=[turn]) == [[turn]]
    assert shown(messages=[[turn], [turn, turn]]) == [[turn], [turn, turn]]
    assert shown(input=[[turn], [turn, turn]]) == [[turn], [turn, turn]]
    assert shown(input=["b", {"content": [IMAGE, TEXT]}]) == ["b", [turn]]
    in_order = {"image": IMAGE["image_url"]["url"], "text": "a"}  # type: ignore[index]
    assert shown(input=[in_order, {"text": "a"}]) == [
        [turn],
        [{"role": "user", "content": [TEXT]}],
    ]


def test_what_is_empty_or_null_was_not_given() -> None:
    assert inputs(input="a", messages=[], chat_template="", chat_template_kwargs={}) == ["a"]
    (turns,) = shown(input=[{"text": "a", "image": None, "content": None}])
    assert turns == [{"role": "user", "content": [TEXT]}]


def test_a_prompt_ends_where_the_answer_would_begin_unless_it_is_told_otherwise() -> None:
    turn = {"role": "user", "content": "a"}
    (chat,) = inputs(messages=[turn])
    assert (chat.add_generation_prompt, chat.continue_final_message) == (True, False)
    (chat,) = inputs(messages=[turn], add_generation_prompt=False)
    assert not chat.add_generation_prompt
    (chat,) = inputs(messages=[turn], continue_final_message=True, chat_template_kwargs={"a": 1})
    assert (chat.add_generation_prompt, chat.continue_final_message) == (False, True)
    assert chat.chat_template_kwargs == {"a": 1}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": "a", "messages": [{"role": "user", "content": "a"}]}, "input"),
        ({"messages": []}, "messages"),
        ({"messages": [{"content": "a"}]}, "messages"),
        ({"messages": [[]]}, "messages"),
        ({"messages": [[{"role": "user", "content": "a"}, {}]]}, "messages"),
        ({"input": [[{"role": "user", "content": "a"}, 5]]}, "input"),
        ({"input": [[5, {"role": "user", "content": "a"}]]}, "input"),
        ({"messages": [{"role": "nobody", "content": "a"}]}, "messages[0]"),
        ({"messages": [[{"role": "user", "content": [{"type": "song"}]}]]}, None),
        ({"input": [{"role": "user", "content": "a"}, "a"]}, None),
        ({"input": [{}]}, "input[0]"),
        ({"input": [{"image": ""}]}, "input[0]"),
        ({"input": [{"image": 5}]}, "input[0]"),
        ({"input": [{"text": 5}]}, "input[0]"),
        ({"input": [{"text": "a"}, [5]]}, "input[1]"),
        ({"input": ["a", [5]]}, "input"),
        ({"input": "a", "continue_final_message": True}, "continue_final_message"),
        ({"input": "a", "chat_template": "x"}, "chat_template"),
    ],
)
def test_a_body_of_another_form_is_refused(body: dict[str, Any], param: str | None) -> None:
    with pytest.raises(RequestError) as caught:
        inputs(**body)
    if param is not None:
        assert caught.value.param == param


def test_many_conversations_are_too_many() -> None:
    turn = {"role": "user", "content": "a"}
    with pytest.raises(RequestError, match="at most 2,048"):
        inputs(messages=[[turn]] * 2049)
