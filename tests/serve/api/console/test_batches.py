"""Batches and files in the console."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from batch_service import line, lines

pytestmark = pytest.mark.browser
NAME = "<img src=x onerror=document.title='taken'>.jsonl"


def file(content: bytes) -> dict[str, Any]:
    return {"name": NAME, "mimeType": "application/jsonl", "buffer": content}


def begin(page: Any, content: bytes) -> None:
    page.get_by_label("Lines (JSONL)", exact=True).set_input_files(file(content))
    page.get_by_role("button", name="Begin").click()


def test_a_batch_from_its_file_to_its_answers(opened: Any, batch_url: str) -> None:
    watched = opened(batch_url, "batches")
    page = watched.page
    page.get_by_text("No batches").wait_for()
    title = page.title()
    begin(page, lines([line("a"), line("b", max_tokens=-1), line("c")]))
    card = page.get_by_role("article")
    card.get_by_text("completed").wait_for()
    assert "2 of 3 lines answered" in card.inner_text()
    assert "1 failed" in card.inner_text()
    with page.expect_download() as download:
        card.get_by_role("button", name="Answers").click()
    answers = [json.loads(one) for one in Path(download.value.path()).read_text().splitlines()]
    assert [one["custom_id"] for one in answers] == ["a", "c"]
    row = page.locator("tr", has_text=NAME)
    row.wait_for()
    assert page.locator("main table img").count() == 0
    watched.screenshot("batches")
    page.get_by_role("button", name=f"Delete {NAME}").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    row.wait_for(state="detached")
    assert page.title() == title


def test_a_batch_is_paused_resumed_and_cancelled(
    opened: Any, with_batches: Callable[..., str]
) -> None:
    page = opened(with_batches(time_per_token_ms=200.0), "batches").page
    begin(page, lines(line(str(number), max_tokens=50) for number in range(1000)))
    card = page.get_by_role("article")
    page.get_by_role("button", name="Pause").click()
    card.get_by_text("paused").wait_for()
    page.get_by_role("button", name="Go on").click()
    card.get_by_text("in progress").wait_for()
    page.get_by_role("button", name="Cancel batch").click()
    page.get_by_role("button", name="Cancel the batch").click()
    card.get_by_text("cancelled").wait_for()


def ask(url: str, *names: str) -> str:
    """Begins a batch of messages; gives its id."""
    messages = [{"role": "user", "content": "x"}]
    params = {"model": "sim", "max_tokens": 50, "messages": messages}
    requests = [{"custom_id": name, "params": params} for name in names]
    answer = httpx.post(f"{url}/v1/messages/batches", json={"requests": requests}, timeout=60)
    return str(answer.raise_for_status().json()["id"])


def test_batches_of_messages_stand_among_the_others(
    opened: Any, with_batches: Callable[..., str]
) -> None:
    url = with_batches(time_per_token_ms=20.0)
    id = ask(url, "a", "b")
    page = opened(url, "batches").page
    card = page.get_by_role("article", name=f"Batch {id}")
    card.get_by_text("completed").wait_for()
    assert "2 of 2 lines answered" in card.inner_text()
    with page.expect_download() as download:
        card.get_by_role("button", name="Results").click()
    answers = [json.loads(one) for one in Path(download.value.path()).read_text().splitlines()]
    assert {one["result"]["type"] for one in answers} == {"succeeded"}
    long = ask(url, *map(str, range(1000)))
    begin(page, lines([line("a")]))
    page.get_by_role("button", name=f"Cancel {long}").click()
    page.get_by_role("button", name="Cancel the batch").click()
    page.get_by_role("article", name=f"Batch {long}").get_by_text("cancelled").wait_for()
    assert page.get_by_role("article").count() == 3


def test_faults_of_a_file_are_listed(opened: Any, batch_url: str) -> None:
    page = opened(batch_url, "batches").page
    begin(page, b'{"custom_id": "<b>"}\nno json\n')
    card = page.get_by_role("article")
    card.get_by_text("failed", exact=True).wait_for()
    card.locator("summary").click()
    assert "Line 2: " in card.inner_text()
