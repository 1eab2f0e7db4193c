"""The options of `penstock serve` for stored responses."""

from __future__ import annotations

from typing import Any

import pytest

from penstock.cli.serve.settings import store_of
from penstock.errors import ConfigError
from penstock.serve.config.settings import StoreSettings

IN_A_FILE = StoreSettings(path="a.db", ttl_s=5.0)


def options(path: str | None = None, days: float | None = None, mb: float | None = None) -> Any:
    return {"store_path": path, "store_days": days, "store_max_mb": mb}


@pytest.mark.parametrize(
    ("given", "configured", "expected"),
    [
        (options(), None, None),
        (options(), IN_A_FILE, IN_A_FILE),
        (options("/b.db"), None, StoreSettings(path="/b.db")),
        (options("/b.db"), IN_A_FILE, StoreSettings(path="/b.db", ttl_s=5.0)),
        (
            options("/b.db", 2.0, 0.5),
            None,
            StoreSettings(path="/b.db", ttl_s=172800.0, max_bytes=2**19),
        ),
    ],
)
def test_options_go_before_the_file(given: Any, configured: Any, expected: Any) -> None:
    assert store_of(given, configured) == expected


def test_limits_need_a_store() -> None:
    with pytest.raises(ConfigError, match="need --store"):
        store_of(options(days=1.0), None)
