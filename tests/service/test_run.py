"""Windows that are accepted, and windows that are refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from batch_service import batch_service, line
from penstock.batch.job.result import Counts
from penstock.service.run import Speed, too_late


def run(rows: int, resumed: int = 0) -> Any:
    return SimpleNamespace(counts=Counts(rows=rows, resumed=resumed))


def test_speed_is_that_of_all_batches_together() -> None:
    now = [0.0]
    speed = Speed(lambda: now[0])
    assert speed.seconds_for(10) is None
    first, second = run(20, resumed=10), run(0)
    speed.begin(first)
    speed.begin(second)
    now[0] = 10.0
    assert speed.seconds_for(10) is None  # ten lines show too little
    second.counts.rows = 30
    assert speed.seconds_for(100) == 25.0
    speed.end(first)
    speed.end(second)
    now[0] = 1000.0  # nothing to do
    assert speed.seconds_for(100) == 25.0
    third = run(40)
    speed.begin(third)
    now[0] = 1030.0
    assert speed.seconds_for(100) == 50.0


def test_what_takes_longer_than_the_window_is_a_fault() -> None:
    assert not too_late(10, 0, None, 1.0)
    assert not too_late(10, 0, 1.0, 1.0)
    (fault,) = too_late(1000, 20, 7200.0, 600.0)
    assert fault.code == "completion_window_too_short"
    assert "about 2 h at" in fault.message
    assert "20 of batches before" in fault.message


async def test_a_window_that_cannot_be_kept_fails_the_batch_at_once(tmp_path: Path) -> None:
    async with batch_service(tmp_path, engine={"time_per_token_ms": 20}) as service:
        first = await service.submit(
            [line(f"a{n}", seed=n) for n in range(40)], completion_window="1s"
        )
        await service.ended(first.id)  # nothing was known yet, so it was accepted
        first = await service.submit([line(f"a{n}", seed=n) for n in range(40)])
        assert (await service.ended(first.id)).status == "completed"
        later = await service.submit(
            [line(f"b{n}", seed=n) for n in range(4000)], completion_window="5s"
        )
        found = await service.ended(later.id)
        assert found.status == "failed"
        assert found.errors.data[0].code == "completion_window_too_short"
        assert found.errors.data[0].param == "completion_window"
        wide = await service.submit([line(f"c{n}", seed=n) for n in range(40)])
        assert (await service.ended(wide.id)).status == "completed"
