"""A headless browser for tests of pages."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


@contextmanager
def launched() -> Iterator[Any]:
    """PENSTOCK_BROWSER, a browser that the system has, or Playwright's own."""
    playwright = pytest.importorskip("playwright.sync_api")
    found = (
        os.environ.get("PENSTOCK_BROWSER")
        or shutil.which("chromium")
        or shutil.which("google-chrome")
    )
    with playwright.sync_playwright() as driver:
        # It only sees our own pages.
        browser = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


class Watched:
    """A page, and what went wrong on it. `screenshot` keeps what it shows in PENSTOCK_SCREENSHOTS,
    if that names a folder.
    """

    def __init__(self, page: Any) -> None:
        self.page = page
        self.asked: list[str] = []
        self.wrong: list[str] = []
        page.on("request", lambda request: self.asked.append(request.url))
        page.on("pageerror", lambda error: self.wrong.append(str(error)))
        page.on("console", self._told)

    def _told(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.wrong.append(message.text)

    def screenshot(self, name: str) -> None:
        if folder := os.environ.get("PENSTOCK_SCREENSHOTS"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.page.screenshot(path=Path(folder) / f"{name}.png")

    def check(self, url: str) -> None:
        """Nothing went wrong, and nothing was asked of anybody but the server."""
        assert not self.wrong, self.wrong
        assert [one for one in self.asked if not one.startswith((url, "data:", "blob:"))] == []
