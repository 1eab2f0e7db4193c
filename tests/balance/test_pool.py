"""Choosing between members, and going from one to another."""

from typing import Any

import pytest

from penstock.balance.policies.base import ANYWHERE, RouteRequest
from penstock.balance.policies.load import LeastLoaded, RoundRobin
from penstock.balance.policies.prefix import PrefixAware
from penstock.balance.pool import Failover, Member, Pool, prompt_of
from penstock.types import ChatRequest, CompletionRequest, EmbeddingRequest, Sampling

LONG = "x" * 600


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which the test sets."""
    now = [0.0]
    monkeypatch.setattr("penstock.balance.pool._now", lambda: now[0])
    return now


class Obtaining(Pool[Member]):
    """Obtains a member of its own, called "new"."""

    async def obtain(self, failover: Failover[Member]) -> Member:
        failover.tried.clear()
        return Member("new")


def members(count: int) -> list[Member]:
    return [Member(f"m{number}") for number in range(count)]


def choices(pool: Pool[Member], count: int) -> list[str]:
    return [member.id for _ in range(count) if (member := pool.choose(ANYWHERE)) is not None]


def test_an_empty_pool_chooses_nobody() -> None:
    assert Pool[Member](RoundRobin()).choose(ANYWHERE) is None


def test_one_that_is_avoided_gets_nothing_for_a_while(clock: list[float]) -> None:
    first, second = members(2)
    pool = Pool(RoundRobin(), [first, second])
    pool.avoid(first, 5.0)
    assert choices(pool, 2) == ["m1", "m1"]
    pool.avoid(second, 1.0)
    assert choices(pool, 1) == []
    clock[0] = 5.0
    assert sorted(choices(pool, 2)) == ["m0", "m1"]


def test_the_ready_ones_are_the_same_sequence_until_that_changes(clock: list[float]) -> None:
    """Policies derive what they know of a sequence once."""
    one, *_ = of = members(3)
    pool = Pool(RoundRobin(), of)
    assert pool.ready() is pool.ready() is pool.members
    pool.avoid(one, 5.0)
    fewer = pool.ready()
    assert len(fewer) == 2
    assert pool.ready() is fewer
    clock[0] = 5.0
    assert pool.ready() == pool.members
    assert pool.ready() is pool.ready()


def test_those_that_are_gone_are_forgotten(clock: list[float]) -> None:
    forgotten: list[str] = []

    class Forgetting(RoundRobin):
        def gone(self, replica_id: str) -> None:
            forgotten.append(replica_id)

    first, second = members(2)
    pool = Pool(Forgetting(), [first, second])
    third = Member("m2")
    assert pool.replace([second, third]) == [first]
    assert forgotten == ["m0"]
    assert pool.ready() == (second, third)


async def test_a_request_goes_from_one_to_the_next_and_then_waits() -> None:
    failover = Failover(Obtaining(RoundRobin(), members(2)), ANYWHERE)
    assert {(await failover.next()).id, (await failover.next()).id} == {"m0", "m1"}
    assert not failover.has_other
    assert (await failover.next()).id == "new"
    assert failover.has_other


def test_patience_begins_with_the_first_wait(clock: list[float]) -> None:
    clock[0] = 100.0
    failover = Failover(Pool[Member](RoundRobin()), ANYWHERE)
    assert failover.patience_left(10.0) == 10.0
    clock[0] = 104.0
    assert failover.patience_left(10.0) == 6.0
    clock[0] = 200.0
    assert failover.patience_left(10.0) == 0.0


@pytest.mark.parametrize(
    ("request_", "prompt"),
    [
        (
            ChatRequest([{"role": "user", "content": "hi"}], Sampling()),
            b'[{"role":"user","content":"hi"}]',
        ),
        (CompletionRequest("hi", Sampling()), b'"hi"'),
        (CompletionRequest([1, 2], Sampling()), b"[1,2]"),
        (EmbeddingRequest(["hi"]), b""),
        (None, b""),
    ],
)
def test_a_policy_reads_prompts(request_: Any, prompt: bytes) -> None:
    assert prompt_of(request_) == prompt


def test_a_prompt_is_read_only_where_the_policy_wants_it() -> None:
    request = CompletionRequest(LONG, Sampling(), adapter="a")
    assert Pool[Member](LeastLoaded()).route_of(request) == RouteRequest(adapter="a")
    reading = Pool[Member](PrefixAware())
    with_adapter, without = (
        reading.route_of(request),
        reading.route_of(CompletionRequest(LONG, Sampling())),
    )
    assert len(with_adapter.blocks) == len(without.blocks) == 2
    assert not set(with_adapter.blocks) & set(without.blocks)
