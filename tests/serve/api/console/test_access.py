"""The console for everybody: screen readers, the keyboard alone, small screens."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.browser
VIEWS = ("chat", "models", "live", "requests", "batches")


def go(page: Any, view: str) -> None:
    page.evaluate(f"location.hash = '{view}'")
    page.locator(f"body[data-view={view}]").wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(opened: Any, batch_url: str, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = opened(batch_url, color_scheme=scheme).page
    for label in ("Token probabilities", "Answer by a schema", "Offer tools"):
        page.get_by_label(label).check()
    page.get_by_label("Message", exact=True).fill("Hello")
    page.keyboard.press("Enter")
    page.locator(".message footer").wait_for()
    page.locator(".probabilities summary").click()
    for view in VIEWS:
        go(page, view)
        found = axe.run(page).response["violations"]
        assert [(one["id"], one["nodes"][0]["html"]) for one in found] == [], view
    page.get_by_role("button", name="Key", exact=True).click()
    assert axe.run(page).response["violations"] == []


def test_the_keyboard_alone(opened: Any, batch_url: str) -> None:
    page = opened(batch_url).page
    page.locator("#model option").first.wait_for(state="attached")

    def tab_to(name: str) -> None:
        for _ in range(60):
            page.keyboard.press("Tab")
            focus = page.evaluate(
                "[document.activeElement.getAttribute('aria-label'),"
                " document.activeElement.innerText, document.activeElement.labels?.[0]?.innerText]"
            )
            if name in focus:
                return
        raise AssertionError(f"Tab never comes to {name}")

    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.innerText") == "Skip to the content"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    tab_to("Message")
    page.keyboard.type("Hello")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("again")
    page.keyboard.press("Enter")
    page.locator(".message footer").wait_for()
    assert page.locator(".said").inner_text() == "Hello\nagain"
    tab_to("Answer by a schema")
    page.keyboard.press("Space")
    tab_to("Add a field")
    page.keyboard.press("Enter")
    page.keyboard.type("colour")
    assert page.get_by_role("group", name="Field 3").count() == 1
    page.reload()
    for view in ("Models", "Live", "Requests", "Batches"):
        page.evaluate("document.body.focus()")
        tab_to(view)
        page.keyboard.press("Enter")
        page.locator(f"body[data-view={view.lower()}]").wait_for()
        assert page.get_by_role("link", name=view).get_attribute("aria-current") == "page"
        page.get_by_role("heading", name=view, level=1).wait_for()
        page.reload()
    tab_to("Key")
    page.keyboard.press("Enter")
    page.get_by_role("dialog").wait_for()
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.id") == "key"


def test_a_phone(opened: Any, batch_url: str) -> None:
    watched = opened(batch_url, viewport={"width": 360, "height": 740}, color_scheme="dark")
    page = watched.page
    page.get_by_label("Message", exact=True).fill("word" * 80)
    page.keyboard.press("Enter")
    page.locator(".message footer").wait_for()
    for view in VIEWS:
        go(page, view)
        assert page.evaluate("document.documentElement.scrollWidth") == 360, view
        watched.screenshot(f"phone-{view}")
        for link in page.locator("nav a").all():
            box = link.bounding_box()
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= 360
