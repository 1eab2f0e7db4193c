"""Models, charts, requests and keys in the console."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from msgspec.structs import replace

from penstock.engines.simulated.engine import SimulatedEngine

pytestmark = pytest.mark.browser
CHAT = {"model": "sim", "messages": [{"role": "user", "content": "secret <b>words</b>"}]}


@pytest.fixture
def model(handle: Any) -> Any:
    return handle("sim", SimulatedEngine(), ["german"])


@pytest.fixture
def dev_url(running: Callable[..., str], served: Any, model: Any) -> str:
    return running(lambda: served(model, dev=True))


def test_a_model_is_put_to_sleep_and_woken(opened: Any, dev_url: str, model: Any) -> None:
    watched = opened(dev_url, "models")
    page = watched.page
    card = page.get_by_role("article", name="sim")
    card.get_by_text("ready").wait_for()
    assert "german" in card.inner_text()
    watched.screenshot("models")
    page.get_by_role("button", name="Sleep sim").click()
    page.get_by_role("button", name="Cancel").click()
    assert model.calls == []
    page.get_by_role("button", name="Sleep sim").click()
    page.get_by_role("dialog").get_by_role("button", name="Sleep").click()
    page.get_by_text("sim sleeps").wait_for()
    assert model.calls == [("sleep", {})]
    model.now = replace(model.now, state="asleep", waiting=3, reason="<img src=x onerror=alert(1)>")
    page.get_by_role("button", name="Wake sim").click()
    page.get_by_text("sim is awake").wait_for()
    assert "<img src=x" in card.inner_text()
    model.now = replace(model.now, state="cold", reason="")
    page.get_by_role("button", name="Load sim").click()
    page.get_by_text("sim is loaded").wait_for()
    card.get_by_text("Load an adapter").click()
    card.get_by_label("Name").fill("french")
    card.get_by_label("Directory or URL").fill("/french")
    card.get_by_role("button", name="Load the adapter", exact=True).click()
    page.get_by_text("The adapter french is loaded").wait_for()
    assert [name for name, _ in model.calls] == [
        "sleep",
        "wakeup",
        "load_model",
        "load_lora_adapter",
    ]


def test_without_dev_nothing_is_offered_that_would_fail(opened: Any, url: str) -> None:
    page = opened(url, "models").page
    page.get_by_text("start the server with --dev").wait_for()
    page.get_by_role("article", name="sim").get_by_text("ready").wait_for()
    assert page.get_by_role("article").get_by_role("button").count() == 0
    assert page.get_by_role("link", name="Batches").is_hidden()


def test_charts_of_the_last_two_minutes(opened: Any, url: str) -> None:
    for _ in range(3):
        ask = {**CHAT, "stream": True, "max_tokens": 20}
        assert httpx.post(f"{url}/v1/chat/completions", json=ask).status_code == 200
    watched = opened(url, "live")
    page = watched.page
    first = page.get_by_role("article", name="Time to first token")
    first.locator(".point").nth(2).wait_for(state="attached")
    assert first.get_by_role("img").get_attribute("aria-label").startswith("Time to first token: ")
    speed = page.get_by_role("article", name="Tokens per second")
    speed.locator("path.line").wait_for(state="attached")
    # There is something to see, once the second of the answers is over.
    speed.locator(".axis.top").filter(has_not_text=re.compile(r"^1\.0 tokens/s$")).wait_for()
    watched.screenshot("live")


def test_requests_and_what_they_say(opened: Any, url: str) -> None:
    watched = opened(url, "requests")
    page = watched.page
    page.get_by_text("No requests yet").wait_for()
    httpx.post(f"{url}/v1/chat/completions", json=CHAT)
    httpx.post(f"{url}/v1/chat/completions", json={**CHAT, "temperature": -1})
    rows = page.locator("tbody tr")
    rows.nth(1).wait_for()
    rows.last.get_by_role("button").click()
    assert "was not kept" in page.get_by_role("dialog").inner_text()
    page.keyboard.press("Escape")
    with page.expect_response("**/console/live"):
        page.get_by_label("Keep what requests say").check()
    httpx.post(f"{url}/v1/chat/completions", json=CHAT)
    rows.nth(2).wait_for()
    rows.first.get_by_role("button").click()
    assert "secret <b>words</b>" in page.get_by_role("dialog").inner_text()
    page.get_by_role("button", name="Close").click()
    page.get_by_label("Only failures").check()
    rows.nth(1).wait_for(state="detached")
    assert "400 invalid request error" in rows.inner_text()
    watched.screenshot("requests")
    page.get_by_role("button", name="Hold").click()
    assert page.get_by_role("button", name="Go on").get_attribute("aria-pressed") == "true"


def test_the_key_is_asked_for_and_kept_in_memory(
    opened: Any, running: Callable[..., str], served: Any, model: Any
) -> None:
    url = running(lambda: served(model, api_keys=frozenset({"user-key"}), admin_keys=frozenset()))
    watched = opened(url)
    page = watched.page
    dialog = page.get_by_role("dialog", name="API key")
    assert watched.wrong == []
    dialog.get_by_label("Key").fill("wrong")
    page.keyboard.press("Enter")
    dialog.get_by_text("the API key is wrong").wait_for()
    watched.screenshot("key")
    assert watched.wrong  # the browser itself tells of the 401
    watched.wrong.clear()
    dialog.get_by_label("Key").fill("user-key")
    page.keyboard.press("Enter")
    page.locator("#model option").first.wait_for(state="attached")
    page.get_by_label("Message", exact=True).fill("Hello")
    page.keyboard.press("Enter")
    page.locator(".message footer").wait_for()
    page.get_by_role("button", name="dark").click()
    stored = page.evaluate("JSON.stringify([localStorage, sessionStorage, document.cookie])")
    assert stored == '[{"penstock-console-theme":"dark"},{},""]'
    assert not [one for one in watched.asked if "user-key" in one]
    assert "user-key" not in page.url
    page.get_by_role("link", name="Requests").click()
    page.get_by_text("These are the requests with your key.").wait_for()
    page.reload()
    dialog.get_by_label("Key").wait_for()
    assert dialog.get_by_label("Key").input_value() == ""


def test_who_gives_no_key_is_not_asked_again(
    opened: Any, running: Callable[..., str], served: Any, model: Any
) -> None:
    url = running(lambda: served(model, api_keys=frozenset({"user-key"}), admin_keys=frozenset()))
    watched = opened(url, "batches")
    page = watched.page
    dialog = page.get_by_role("dialog", name="API key")
    dialog.get_by_role("button", name="Cancel").click()
    for _ in range(3):  # it goes on to look whether the server answers
        page.wait_for_event("response", lambda one: one.url.endswith("/console/live"))
    assert dialog.count() == 0
    page.get_by_text("Not connected: ").wait_for()
    page.get_by_role("button", name="Key").click()
    dialog.get_by_label("Key").fill("user-key")
    page.keyboard.press("Enter")
    page.get_by_role("status").filter(has_text="Idle").wait_for()
    watched.wrong.clear()  # the browser itself tells of each request that failed


def test_a_server_that_is_gone_is_told(opened: Any, url: str) -> None:
    watched = opened(url)
    page = watched.page
    state = page.get_by_role("status").filter(has_text="Idle")
    state.wait_for()
    page.route("**/console/live", lambda route: route.abort())
    page.get_by_text("Not connected: the server does not answer").wait_for()
    page.unroute("**/console/live")
    state.wait_for()
    watched.wrong.clear()  # the browser itself tells of each request that failed
