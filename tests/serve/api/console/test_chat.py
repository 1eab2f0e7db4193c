"""Talking to a model in the console."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from penstock.engines.simulated.engine import SimulatedEngine

pytestmark = pytest.mark.browser
HOSTILE = (
    """<img src=x onerror="document.title='taken'"> <script>document.title='taken'</script>

[press](javascript:document.title='taken') [data](data:text/html,x) ![picture](http://192.0.2.1/x.png)
[fine](https://example.org/a_b_c) and https://example.org/bare.

| <img src=x onerror=alert(1)> | b |
|---|---|
| `<b>` | **bold** |

- one
  - two <svg onload=alert(1)>
1. three

```html
<script>alert(1)</script>
```

> # quoted

"""
    + "> " * 60
    + "deep\n"
    + "[" * 3000
    + "*" * 3001
)


def chunk(**delta: Any) -> str:
    finish = delta.pop("finish_reason", None)
    body = {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}
    return f"data: {json.dumps(body)}\n\n"


class Model:
    """Answers chats in the server's place, as it is told to."""

    def __init__(self, page: Any, *answers: str) -> None:
        self.asked: list[Any] = []
        self._answers = list(answers)
        page.route("**/v1/chat/completions", self._answer)

    def _answer(self, route: Any) -> None:
        self.asked.append(route.request.post_data_json)
        body = self._answers.pop(0) + "data: [DONE]\n\n"
        route.fulfill(status=200, content_type="text/event-stream", body=body)


def say(page: Any, text: str) -> None:
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")


def test_an_answer_streams_and_says_what_it_took(opened: Any, url: str) -> None:
    watched = opened(url)
    page = watched.page
    page.get_by_text("Ask the model").wait_for()
    page.get_by_label("Max tokens").fill("12")
    page.get_by_label("Temperature").fill("0")
    page.get_by_label("Token probabilities").check()
    say(page, "Hello <b>you</b>")
    footer = page.locator(".message.assistant footer")
    footer.wait_for()
    assert re.search(
        r"\d+ tokens in, 12 out · first token after .*cut at max tokens", footer.inner_text()
    )
    assert page.locator(".said").inner_text() == "Hello <b>you</b>"
    page.get_by_text("Probabilities of 12 tokens").click()
    tokens = page.get_by_role("group", name="Tokens: arrow keys choose one")
    tokens.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.locator(".token.chosen").count() == 1
    assert page.locator(".alternatives li").first.inner_text().endswith("%")
    watched.screenshot("chat")
    page.get_by_role("button", name="New chat").click()
    page.get_by_text("Ask the model").wait_for()


def test_hostile_answers_are_text(opened: Any, url: str) -> None:
    page = opened(url).page
    Model(page, chunk(content=HOSTILE) + chunk(reasoning=HOSTILE) + chunk(finish_reason="stop"))
    title = page.title()
    say(page, HOSTILE)
    page.locator(".message.assistant footer").wait_for()
    log = page.locator(".log")
    for tag in ("img", "script", "svg", "iframe", "style"):
        assert log.locator(tag).count() == 0, tag
    addresses = log.locator("a").evaluate_all("all => all.map((one) => one.href)")
    assert set(addresses) == {
        "https://example.org/a_b_c",
        "https://example.org/bare",
        "http://192.0.2.1/x.png",
    }
    relations = log.locator("a").evaluate_all("all => all.map((one) => one.rel)")
    assert set(relations) == {"noopener noreferrer nofollow"}
    text = log.locator(".text").first
    assert "<img src=x onerror=" in text.inner_text()
    assert text.locator("th").first.inner_text() == "<img src=x onerror=alert(1)>"
    assert text.locator("td strong").inner_text() == "bold"
    assert text.locator("ul li").count() == 2
    assert text.locator("pre").inner_text() == "<script>alert(1)</script>"
    assert page.title() == title


def test_thoughts_and_calls_of_tools(opened: Any, url: str) -> None:
    watched = opened(url)
    page = watched.page
    call = {"index": 0, "id": "call_1", "type": "function"}
    model = Model(
        page,
        chunk(reasoning="Let me **think**.")
        + chunk(tool_calls=[{**call, "function": {"name": "get_weather", "arguments": '{"ci'}}])
        + chunk(tool_calls=[{"index": 0, "function": {"arguments": 'ty": "Ulm"}'}}])
        + chunk(finish_reason="tool_calls"),
        chunk(content="It *rains*.") + chunk(finish_reason="stop"),
    )
    page.get_by_label("Offer tools").check()
    say(page, "Weather in Ulm?")
    page.get_by_label("Result of get_weather").fill('{"rain": true}')
    page.get_by_text("Thoughts").click()
    assert page.locator(".thoughts strong").inner_text() == "think"
    assert '"city": "Ulm"' in page.locator(".call pre").inner_text()
    watched.screenshot("tools")
    page.get_by_role("button", name="Give the result").click()
    page.get_by_text("It rains.").wait_for()
    first, second = model.asked
    assert first["tools"][0]["function"]["name"] == "get_weather"
    _, called, result = second["messages"]
    assert called["tool_calls"][0]["function"] == {
        "name": "get_weather",
        "arguments": '{"city": "Ulm"}',
    }
    assert result == {"role": "tool", "tool_call_id": "call_1", "content": '{"rain": true}'}


def test_pictures_for_a_model_that_sees(opened: Any, url: str) -> None:
    watched = opened(url)
    page = watched.page
    page.get_by_text("Ask the model").wait_for()
    assert page.get_by_role("button", name="Picture").is_hidden()

    def see(route: Any) -> None:
        answer = route.fetch()
        cards = answer.json()
        for card in cards["data"]:
            card["input_modalities"] = ["text", "image"]
        route.fulfill(response=answer, json=cards)

    page.route("**/v1/models", see)
    page.reload()
    model = Model(page, chunk(content="A dot.") + chunk(finish_reason="stop"))
    page.get_by_role("button", name="Picture").wait_for()
    dot = (
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x01\0\0\0\x01\x08\x06\0\0\0\x1f\x15\xc4\x89\0\0\0\r"
        b"IDATx\x9cc\xf8\xcf\xc0\xf0\x1f\0\x05\0\x01\xff\x89\x99=\x1d\0\0\0\0IEND\xaeB`\x82"
    )
    hostile = "<img src=x onerror=alert(1)>.png"
    page.locator("input[type=file]").first.set_input_files(
        [
            {"name": hostile, "mimeType": "image/png", "buffer": dot},
            {"name": "a.pdf", "mimeType": "application/pdf", "buffer": b"%PDF"},
        ]
    )
    page.get_by_text("a.pdf is no picture").wait_for()
    assert page.locator(".attached img").get_attribute("alt") == hostile
    say(page, "What is it?")
    page.get_by_text("A dot.").wait_for()
    picture, text = model.asked[0]["messages"][0]["content"]
    assert picture["image_url"]["url"].startswith("data:image/png;base64,")
    assert text == {"type": "text", "text": "What is it?"}
    assert page.locator(".attached li").count() == 0


def test_the_editor_of_schemas(opened: Any, url: str) -> None:
    watched = opened(url)
    page = watched.page
    model = Model(page, *[chunk(content='{"size":1}') + chunk(finish_reason="stop")] * 2)
    page.get_by_label("Answer by a schema").check()
    for name in ("category", "urgent"):
        page.get_by_role("button", name=f"Remove the field {name}").click()
    page.get_by_role("button", name="Add a field").click()
    page.keyboard.type("size")
    page.get_by_role("group", name="Field").get_by_label("Type").select_option("one of")
    page.get_by_label("Options, with commas").fill("small, large,")
    say(page, "How large?")
    page.locator("pre.json").wait_for()
    assert page.locator("pre.json").inner_text() == '{\n  "size": 1\n}'
    assert model.asked[0]["response_format"]["json_schema"]["schema"] == {
        "type": "object",
        "properties": {"size": {"enum": ["small", "large"]}},
        "required": ["size"],
        "additionalProperties": False,
    }
    page.get_by_text("As JSON", exact=True).click()
    source = page.get_by_label("JSON Schema")
    source.fill('{"type": "object", "minProperties": 1}')
    page.get_by_text("This schema says more than fields can").wait_for()
    source.fill('{"type":')
    page.get_by_text("No schema:").wait_for()
    say(page, "And now?")
    page.get_by_text("the schema is no JSON").wait_for()
    assert len(model.asked) == 1


def test_a_failure_is_told_and_the_question_can_be_asked_again(opened: Any, url: str) -> None:
    page = opened(url).page
    failing = f"data: {json.dumps({'error': {'message': 'the engine <b>broke</b>'}})}\n\n"
    Model(
        page, chunk(content="It be") + failing, chunk(content="fine") + chunk(finish_reason="stop")
    )
    say(page, "Hello")
    assert page.get_by_role("alert").inner_text() == "the engine <b>broke</b>"
    page.get_by_role("button", name="Answer again").click()
    page.locator(".text", has_text="fine").wait_for()


def test_an_answer_can_be_stopped(
    opened: Any, running: Callable[..., str], served: Any, handle: Any
) -> None:
    slow = SimulatedEngine(engine_kwargs={"time_per_token_ms": 50.0})
    page = opened(running(lambda: served(handle("sim", slow)))).page
    say(page, "A long one")
    page.get_by_role("button", name="Stop").wait_for()
    page.locator(".text", has_text=" ").wait_for()
    page.keyboard.press("Escape")
    page.locator("footer", has_text="stopped").wait_for()
    page.get_by_role("button", name="Send").wait_for()
    page.get_by_role("link", name="Requests").click()
    page.get_by_text("499 client closed request").wait_for()
