"""The page under /docs in a real browser."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

import browser
from penstock.serve.api.routes import ENDPOINTS

pytestmark = pytest.mark.browser


@pytest.fixture
def page() -> Iterator[Any]:
    with browser.launched() as launched:
        yield launched.new_page()


def test_the_docs_show_every_endpoint_and_samples_that_work(page: Any, url: str) -> None:
    asked: list[str] = []
    wrong: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on(
        "console", lambda message: wrong.append(message.text) if message.type == "error" else None
    )
    page.goto(f"{url}/docs")
    page.wait_for_selector("details")
    assert all(address.startswith(url) for address in asked)
    methods, paths = (page.locator(f"summary > {tag}").all_inner_texts() for tag in ("b", "code"))
    described = [(endpoint.method, endpoint.path.replace(":path", "")) for endpoint in ENDPOINTS]
    assert sorted(zip(methods, paths, strict=True)) == sorted(described)
    box = page.locator("details", has=page.get_by_text("/v1/chat/completions", exact=True))
    table = box.locator("table")
    assert not table.is_visible()
    box.locator("summary").click()
    assert table.is_visible()
    fields = {row.split("\t")[0]: row for row in table.locator("tr").all_inner_texts()}
    assert fields["messages"].endswith("required")
    assert "temperature" in fields
    command = shlex.split(box.locator("pre").inner_text().replace("\\\n", " "))
    assert command[0] == "curl"
    body = command[-1].replace("…", "sim")
    done = subprocess.run(
        [*command[:-1], body, "--silent", "--fail"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert '"choices"' in done.stdout
    # The browser asks for an icon by itself; the page has none.
    assert [text for text in wrong if "404" not in text] == []


def test_a_description_that_cannot_be_read_is_told(page: Any, url: str) -> None:
    page.route("**/openapi.json", lambda route: route.fulfill(status=503, body="{}"))
    page.goto(f"{url}/docs")
    page.wait_for_function("document.querySelector('#paths').textContent !== ''")
    assert page.locator("#paths").inner_text() == "openapi.json could not be read: 503"
