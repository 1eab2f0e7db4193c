"""Which server runs which batch."""

import contextlib
import time
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace

from penstock.errors import NotStoredError
from penstock.service.batches import Batch, BatchStore
from penstock.service.database import SqliteState

LEASE_S = 15.0


def batch(id: str, **more: Any) -> Batch:
    now = int(time.time())
    given: dict[str, Any] = {"created_at": now, "expires_at": now + 60, **more}
    return Batch(
        id=id,
        owner="",
        api="openai",
        endpoint="/v1/embeddings",
        model="m",
        input_file_id="file-1",
        completion_window="60s",
        **given,
    )


@pytest.fixture
def servers(tmp_path):
    """The stores of two servers that share the state."""
    with contextlib.ExitStack() as opened:
        states = [SqliteState(tmp_path / "batches.sqlite") for _ in range(2)]
        for state in states:
            opened.callback(state.close)
        yield [BatchStore(state, lease_s=LEASE_S) for state in states]


async def test_a_batch_that_its_own_server_has_lost_is_free_for_it(servers):
    own, other = servers
    await own.add(batch("1"))
    assert await own.free({"1"}) == []
    assert await other.free(()) == []
    assert await other.claim("1") is None
    assert await own.free(()) == [("1", "m")]
    assert await own.claim("1") is not None


async def test_a_batch_that_only_ends_needs_no_model(servers):
    own, _ = servers
    await own.add(batch("1"))
    await own.add(batch("2", expires_at=int(time.time())))
    await own.add(batch("3"))
    await own.cancel(None, "3", "openai")
    assert await own.free(()) == [("1", "m"), ("2", ""), ("3", "")]


async def test_only_the_server_that_runs_a_batch_changes_it_and_until_its_end(servers):
    own, other = servers
    await own.add(batch("1"))
    with pytest.raises(NotStoredError, match="does not run '1'"):
        await other.change("1", lambda batch: replace(batch, status="finalizing"))
    await own.change("1", lambda batch: replace(batch, status="completed", completed_at=1))
    with pytest.raises(NotStoredError):
        await own.change("1", lambda batch: replace(batch, status="finalizing"))
    assert (await own.get(None, "1")).status == "completed"


async def test_leases_are_times_of_one_clock(servers):
    own, _ = servers
    clock = [1000.0]

    def stores(server: str) -> BatchStore:
        """Of a state that cannot tell which servers live, as on another machine."""
        state: Any = SimpleNamespace(
            server=server,
            run=own._state.run,
            lives=lambda server: None,
            now=lambda db: clock[0],
        )
        return BatchStore(state, lease_s=LEASE_S)

    one, two = stores("one"), stores("two")
    await one.add(batch("1"))
    assert await two.free(()) == []
    clock[0] += 10.0
    await one.renew(["1"])
    clock[0] += 10.0
    assert await two.claim("1") is None
    clock[0] += 10.0
    assert await two.claim("1") is not None
    assert await one.renew(["1"]) == {}
