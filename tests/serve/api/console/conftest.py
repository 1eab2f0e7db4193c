"""The console in a real browser, before an ingress over simulated engines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import browser
from browser import Watched
from penstock.llm_config import LLMConfig
from penstock.serve.config.settings import BatchSettings
from penstock.serve.models.local import LocalModel
from penstock.service.routes import add_batches


@pytest.fixture
def launched() -> Iterator[Any]:
    with browser.launched() as made:
        yield made


@pytest.fixture
def opened(launched: Any) -> Iterator[Any]:
    """Opens the console of a server. At the end nothing was wrong on the page, and nobody else was
    asked, unless the test has looked at that itself.
    """
    made: list[tuple[Watched, str]] = []
    context = launched.new_context(accept_downloads=True, reduced_motion="reduce")

    def open(url: str, view: str = "chat", **options: Any) -> Watched:
        nonlocal context
        if options:
            context.close()
            context = launched.new_context(accept_downloads=True, **options)
        watched = Watched(context.new_page())
        made.append((watched, url))
        watched.page.set_default_timeout(20_000)
        watched.page.goto(f"{url}/console#{view}")
        return watched

    yield open
    try:
        for watched, url in made:
            watched.check(url)
    finally:
        context.close()


@pytest.fixture
def with_batches(running: Callable[..., str], served: Any, tmp_path: Path) -> Callable[..., str]:
    """Serves batches over a local model with these options, as `penstock serve` does; gives the
    URL.
    """

    def make(**options: Any) -> Any:
        config = LLMConfig.from_dict(
            {
                "model_loading_config": {"model_id": "sim", "model_source": "simulated"},
                "llm_engine": "simulated",
                "engine_kwargs": options,
            }
        )
        made = served(LocalModel(config), batches=BatchSettings(path=str(tmp_path / "batches")))
        add_batches(made.app)
        return made

    return lambda **options: running(lambda: make(**options))


@pytest.fixture
def batch_url(with_batches: Callable[..., str]) -> str:
    """A server with a model and with batches."""
    return with_batches()
