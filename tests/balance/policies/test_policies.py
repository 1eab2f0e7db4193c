from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import pytest

from penstock.balance.policies.base import RouteRequest, two_of
from penstock.balance.policies.load import LeastBusy, LeastLoaded, RoundRobin, SessionAffinity
from penstock.balance.policies.prefix import KVAware, PrefixAware, PrefixTree, byte_blocks
from penstock.balance.policies.table import POLICIES, AdapterPreference, make_policy
from penstock.errors import ConfigError


@dataclass
class Replica:
    id: str
    load: int = 0
    weight: float = 1.0
    adapters: set[str] = field(default_factory=set)


def replicas(count: int) -> tuple[Replica, ...]:
    return tuple(Replica(f"r{number}") for number in range(count))


PLAIN = RouteRequest()


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_takes_the_only_replica(name: str) -> None:
    policy = make_policy(name)
    (only,) = replicas(1)
    request = RouteRequest(session="s", adapter="a", blocks=(1, 2))
    for _ in range(3):
        assert policy.choose(request, (only,)) is only
        policy.sent(request, only.id)
    policy.gone(only.id)


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_spreads_equal_replicas(name: str) -> None:
    policy = make_policy(name)
    pool = replicas(8)
    for _ in range(800):
        chosen = policy.choose(PLAIN, pool)
        policy.sent(PLAIN, chosen.id)
        chosen.load += 1
    assert min(replica.load for replica in pool) > 80


def test_an_unknown_policy_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'least_busy'"):
        make_policy("least_bussy")


def test_two_of_gives_two_different_replicas() -> None:
    import random

    draw = random.Random(0)
    pool = replicas(3)
    pairs = Counter(tuple(r.id for r in two_of(pool, draw)) for _ in range(600))
    assert len(pairs) == 6
    assert all(one != other for one, other in pairs)


def test_least_busy_never_takes_the_busier_of_two() -> None:
    policy = LeastBusy(seed=0)
    busy, idle = Replica("busy", 5), Replica("idle", 4)
    assert {policy.choose(PLAIN, (busy, idle)).id for _ in range(50)} == {"idle"}


def test_least_loaded_takes_the_least_loaded_and_then_the_one_whose_turn_it_is() -> None:
    policy = LeastLoaded()
    pool = replicas(3)
    assert [policy.choose(PLAIN, pool).id for _ in range(4)] == ["r0", "r1", "r2", "r0"]
    pool[1].load = 2
    pool[2].load = 1
    assert {policy.choose(PLAIN, pool).id for _ in range(3)} == {"r0"}


def test_least_loaded_shares_idle_replicas_out_by_weight() -> None:
    policy = LeastLoaded()
    pool = (Replica("heavy", weight=3), Replica("light"))
    assert Counter(policy.choose(PLAIN, pool).id for _ in range(16)) == {"heavy": 12, "light": 4}


def test_least_loaded_lets_one_that_was_away_start_level() -> None:
    policy = LeastLoaded()
    pool = replicas(2)
    for _ in range(10):
        policy.choose(PLAIN, pool[:1])
    assert Counter(policy.choose(PLAIN, pool).id for _ in range(11)) == {"r0": 5, "r1": 6}
    policy.gone("r0")
    assert policy.choose(PLAIN, pool).id == "r0"


def test_round_robin_goes_round_and_survives_a_shrinking_pool() -> None:
    policy = RoundRobin()
    pool = replicas(3)
    assert [policy.choose(PLAIN, pool).id for _ in range(4)] == ["r0", "r1", "r2", "r0"]
    assert policy.choose(PLAIN, pool[:1]).id == "r0"


class TestSessionAffinity:
    def test_a_session_stays(self) -> None:
        policy, pool = SessionAffinity(), replicas(16)
        homes = {policy.choose(RouteRequest(session="alice"), pool).id for _ in range(20)}
        assert len(homes) == 1

    def test_two_routers_agree(self) -> None:
        pool = replicas(16)
        requests = [RouteRequest(session=f"s{number}") for number in range(50)]
        one, other = SessionAffinity(), SessionAffinity()
        assert [one.choose(r, pool).id for r in requests] == [
            other.choose(r, pool).id for r in requests
        ]

    def test_a_replica_that_leaves_takes_only_its_own_sessions_along(self) -> None:
        policy, pool = SessionAffinity(), replicas(16)
        requests = [RouteRequest(session=f"s{number}") for number in range(200)]
        before = [policy.choose(r, pool).id for r in requests]
        fewer = pool[:-1]
        after = [policy.choose(r, fewer).id for r in requests]
        assert any(home == "r15" for home in before)
        assert all(new == old for old, new in zip(before, after, strict=True) if old != "r15")

    def test_an_overloaded_home_is_left(self) -> None:
        policy, pool = SessionAffinity(), replicas(16)
        request = RouteRequest(session="alice")
        home = policy.choose(request, pool)
        home.load = 100
        assert policy.choose(request, pool) is not home


class TestPrefixTree:
    def test_the_path_ends_where_nobody_holds_on(self) -> None:
        tree = PrefixTree()
        tree.add([1, 2, 3], "a")
        tree.add([1, 2], "b")
        assert [set(holders) for holders in tree.path([1, 2, 3, 4])] == [
            {"a", "b"},
            {"a", "b"},
            {"a"},
        ]

    def test_memory_is_bounded_and_leaves_go_before_roots(self) -> None:
        tree = PrefixTree(capacity=3)
        tree.add([1, 2, 3], "a")
        tree.add([7], "a")
        assert tree.size == 3
        assert len(tree.path([1, 2, 3])) == 2
        assert len(tree.path([7])) == 1

    def test_what_is_used_stays(self) -> None:
        tree = PrefixTree(capacity=4)
        tree.add([1, 2], "a")
        tree.add([3, 4], "a")
        tree.add([1, 2], "a")
        tree.add([5, 6], "a")
        assert len(tree.path([1, 2])) == 2
        assert tree.path([3, 4]) == []

    def test_a_holder_is_forgotten(self) -> None:
        tree = PrefixTree()
        tree.add([1, 2], "a")
        tree.add([1], "b")
        tree.forget("a")
        assert [set(holders) for holders in tree.path([1, 2])] == [{"b"}]
        assert tree.size == 1

    def test_byte_blocks_share_names_as_far_as_the_prompts_agree(self) -> None:
        one, other = byte_blocks(b"a" * 10 + b"b" * 10, 5), byte_blocks(b"a" * 10 + b"c" * 12, 5)
        assert len(one) == len(other) == 4
        assert one[:2] == other[:2]
        assert not set(one[2:]) & set(other[2:])
        assert byte_blocks(b"a" * 100, 5, most=3) == byte_blocks(b"a" * 15, 5)


@pytest.mark.parametrize("kind", [PrefixAware, KVAware])
class TestOverlap:
    def told(self, policy: PrefixAware | KVAware, request: RouteRequest, replica: str) -> None:
        policy.sent(request, replica)
        if isinstance(policy, KVAware):
            policy.stored(replica, request.blocks)

    def test_a_known_prefix_goes_where_it_was(self, kind: type) -> None:
        policy, pool = kind(seed=0), replicas(32)
        self.told(policy, RouteRequest(blocks=(1, 2, 3, 4)), "r7")
        assert {policy.choose(RouteRequest(blocks=(1, 2, 3, 9)), pool).id for _ in range(20)} == {
            "r7"
        }

    def test_the_longer_prefix_wins(self, kind: type) -> None:
        policy, pool = kind(seed=0), replicas(32)
        self.told(policy, RouteRequest(blocks=(1, 2)), "r7")
        self.told(policy, RouteRequest(blocks=(1, 2, 3)), "r8")
        assert policy.choose(RouteRequest(blocks=(1, 2, 3)), pool).id == "r8"

    def test_a_busy_holder_is_left(self, kind: type) -> None:
        policy, pool = kind(seed=0), replicas(2)
        self.told(policy, RouteRequest(blocks=(1, 2, 3)), "r0")
        pool[0].load = 50
        assert policy.choose(RouteRequest(blocks=(1, 2, 3)), pool).id == "r1"

    def test_a_holder_that_is_gone_does_not_hide_the_next(self, kind: type) -> None:
        policy, pool = kind(seed=0), replicas(32)
        self.told(policy, RouteRequest(blocks=(1, 2)), "r7")
        self.told(policy, RouteRequest(blocks=(1, 2, 3)), "dead")
        assert policy.choose(RouteRequest(blocks=(1, 2, 3)), pool).id == "r7"
        policy.gone("dead")
        assert policy.choose(RouteRequest(blocks=(1, 2, 3)), pool).id == "r7"


def test_kv_aware_believes_the_engine_when_it_drops_blocks() -> None:
    policy, pool = KVAware(seed=0), replicas(2)
    policy.stored("r0", (1, 2, 3))
    pool[0].load = 1
    assert policy.choose(RouteRequest(blocks=(1, 2, 3)), pool).id == "r0"
    policy.removed("r0", (2, 3))
    assert policy.choose(RouteRequest(blocks=(1, 2, 3)), pool).id == "r1"


def test_prefix_aware_learns_from_where_a_request_went_in_the_end() -> None:
    policy, pool = PrefixAware(seed=0), replicas(16)
    request = RouteRequest(blocks=(1, 2, 3))
    policy.choose(request, pool)
    policy.sent(request, "r3")
    assert policy.choose(request, pool).id == "r3"


class TestAdapterPreference:
    def test_a_holder_is_preferred(self) -> None:
        policy, pool = AdapterPreference(LeastBusy(seed=0)), replicas(16)
        pool[5].adapters.add("german")
        pool[5].load = 3
        assert {policy.choose(RouteRequest(adapter="german"), pool).id for _ in range(20)} == {"r5"}
        assert len({policy.choose(PLAIN, pool).id for _ in range(50)}) > 5

    def test_holders_that_are_too_busy_are_left(self) -> None:
        policy, pool = AdapterPreference(LeastBusy(seed=0)), replicas(16)
        pool[5].adapters.add("german")
        pool[5].load = 100
        assert policy.choose(RouteRequest(adapter="german"), pool).id != "r5"


def test_rays_thresholds_of_the_prefix_router() -> None:
    busy, idle = Replica("busy", 9), Replica("idle", 0)
    blocks = (*range(20),)
    request = RouteRequest(blocks=blocks)
    plain, balanced = PrefixAware(seed=1), PrefixAware(seed=1, imbalanced_threshold=8)
    picky = PrefixAware(seed=1, match_rate_threshold=0.5)
    for policy in (plain, balanced):
        policy.sent(request, "busy")
    picky.sent(RouteRequest(blocks=blocks[:9]), "busy")
    assert plain.choose(request, [busy, idle]).id == "busy"
    assert balanced.choose(request, [busy, idle]).id == "idle"
    assert balanced.choose(request, [Replica("busy", 8), idle]).id == "busy"
    assert PrefixAware(do_eviction=True, eviction_threshold_chars=25600).tree.capacity == 100
    assert PrefixAware(eviction_threshold_chars=25600).tree.capacity == 1_000_000
    # Fewer blocks than half are held: only chance would choose the holder among many.
    others = [Replica(f"r{n}", 0) for n in range(50)]
    assert "busy" not in {picky.choose(request, [*others, busy]).id for _ in range(10)}
