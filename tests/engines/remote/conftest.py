from __future__ import annotations

from typing import Any

import pytest

from scripted_api import Script


@pytest.fixture
async def script() -> Any:
    made = Script()
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def other() -> Any:
    made = Script()
    await made.start()
    yield made
    await made.stop()
