"""Policies that look at prompts: requests that begin alike go where their beginning is cached."""

from __future__ import annotations

import math
import random
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from itertools import islice
from typing import Any

from penstock.balance.policies.base import R, RouteRequest, RoutingPolicy, two_of

BLOCK_BYTES = 256
"""Bytes of prompt that make a block of `byte_blocks`; about 64 tokens of English."""
MOST_BLOCKS = 1024


def byte_blocks(prompt: bytes, size: int = BLOCK_BYTES, most: int = MOST_BLOCKS) -> list[int]:
    """Names of the prompt's first `most` full blocks. They mean nothing to another process."""
    names: list[int] = []
    parent = 0
    for start in range(0, min(len(prompt) - size + 1, size * most), size):
        parent = hash((parent, prompt[start : start + size]))
        names.append(parent)
    return names


def shared_blocks(prompt: bytes, root: str = "") -> list[int]:
    """As `byte_blocks`, with names that every process shares. Another `root` has others."""
    names: list[int] = []
    name = root.encode()
    size = BLOCK_BYTES
    for start in range(0, min(len(prompt) - size + 1, size * MOST_BLOCKS), size):
        name = blake2b(name + prompt[start : start + size], digest_size=8).digest()
        names.append(int.from_bytes(name, "little"))
    return names


class PrefixTree:
    """Which replicas hold which prompt prefixes.

    A tree of blocks, kept flat: a block's name depends on all blocks before it, so a name is a
    node, and the path of a prompt is found without following links. `capacity` bounds the pairs of
    a block and a holder: the least recently used leave first, leaves before roots.
    """

    def __init__(self, capacity: int = 1_000_000) -> None:
        self.capacity = capacity
        self.size = 0
        self._holders: OrderedDict[int, dict[str, None]] = OrderedDict()

    def path(self, blocks: Sequence[int]) -> list[dict[str, None]]:
        """The holders of each leading block, as far as there are any."""
        path = []
        known = self._holders
        for block in blocks:
            holders = known.get(block)
            if not holders:
                break
            path.append(holders)
        return path

    def add(self, blocks: Sequence[int], holder: str) -> None:
        """Note that `holder` has these blocks now."""
        known = self._holders
        for block in reversed(blocks):  # so that the root is the last to leave
            holders = known.get(block)
            if holders is None:
                holders = known[block] = {}
            else:
                known.move_to_end(block)
            if holder not in holders:
                holders[holder] = None
                self.size += 1
        while self.size > self.capacity:
            _, holders = known.popitem(last=False)
            self.size -= len(holders)

    def remove(self, blocks: Iterable[int], holder: str) -> None:
        """Note that `holder` has these blocks no more."""
        for block in blocks:
            holders = self._holders.get(block)
            if holders is not None and holder in holders:
                del holders[holder]
                self.size -= 1
                if not holders:
                    del self._holders[block]

    def forget(self, holder: str) -> None:
        """Note that `holder` is gone, or has lost all it held. Looks at every block."""
        self.remove(list(self._holders), holder)


BLOCKS_A_REQUEST = 2.0
"""What one more request on a replica costs a newcomer, in blocks that it must compute."""
MOST_HOLDERS = 4
"""Holders of the longest prefix that are looked at."""


class PrefixAware(RoutingPolicy):
    """Takes the replica where a prompt costs least: blocks to compute, plus requests before it.

    `tree` is what the replicas hold, as far as the requests sent to them tell; `capacity` bounds
    it. The policy looks at some holders of the longest prefix and at two replicas at random, so
    that the cost of choosing does not grow with the number of replicas, and a hot prefix spreads
    when its holders are busy.

    The other arguments are those of Ray's router. A difference of loads above
    `imbalanced_threshold` (default: none) sends a request to the least busy of all; one of whose
    blocks fewer than the share `match_rate_threshold` (0) are held goes by load. With `do_eviction`
    the tree is bounded by `eviction_threshold_chars`. It lets the oldest go one by one, so it needs
    no target and no interval.
    """

    reads_blocks = True

    def __init__(
        self,
        capacity: int = 1_000_000,
        seed: int | None = None,
        *,
        imbalanced_threshold: float | None = None,
        match_rate_threshold: float | None = None,
        do_eviction: bool = False,
        eviction_threshold_chars: int | None = None,
        eviction_target_chars: int | None = None,
        eviction_interval_secs: float | None = None,
    ) -> None:
        if do_eviction and eviction_threshold_chars is not None:
            capacity = max(1, int(eviction_threshold_chars) // BLOCK_BYTES)
        self.tree = PrefixTree(capacity)
        self._draw = random.Random(seed)
        self._imbalanced = math.inf if imbalanced_threshold is None else imbalanced_threshold
        self._match_rate = match_rate_threshold or 0.0
        self._seen: Sequence[Any] = ()
        self._by_id: dict[str, Any] = {}

    def choose(self, request: RouteRequest, replicas: Sequence[R]) -> R:
        """The cheapest of those looked at."""
        if replicas is not self._seen:
            self._notice(replicas)
        path = self.tree.path(request.blocks)
        candidates = list(two_of(replicas, self._draw))
        depth = len(path)
        if depth < self._match_rate * len(request.blocks):
            depth = 0
        if self._imbalanced < math.inf:
            loads = [replica.load for replica in replicas]
            if max(loads) - min(loads) > self._imbalanced:
                return replicas[loads.index(min(loads))]
        while depth:
            # Few hold a long prefix, and all may hold a short one: then some, from a place drawn
            # anew.
            holders = path[depth - 1]
            start = int(self._draw.random() * len(holders)) if len(holders) > MOST_HOLDERS else 0
            near = [*islice(holders, start, start + MOST_HOLDERS)] or [
                *islice(holders, MOST_HOLDERS)
            ]
            found = [self._by_id[holder] for holder in near if holder in self._by_id]
            if found:
                candidates += found
                break
            depth -= 1  # they are all gone
        blocks = len(request.blocks)
        best = candidates[0]
        least = float("inf")
        for replica in candidates:
            cost = blocks - _held(path, replica.id) + BLOCKS_A_REQUEST * replica.load
            if cost < least:
                best, least = replica, cost
        return best

    def sent(self, request: RouteRequest, replica_id: str) -> None:
        """Take the replica to hold the prompt from now on."""
        self.tree.add(request.blocks, replica_id)

    def gone(self, replica_id: str) -> None:
        self.tree.forget(replica_id)

    def _notice(self, replicas: Sequence[Any]) -> None:
        self._by_id = {replica.id: replica for replica in replicas}
        self._seen = replicas


def _held(path: list[dict[str, None]], holder: str) -> int:
    """How many leading blocks of the path `holder` has. With a block it has all before it."""
    low, high = 0, len(path)
    while low < high:
        middle = (low + high) // 2
        if holder in path[middle]:
            low = middle + 1
        else:
            high = middle
    return low


class KVAware(PrefixAware):
    """As prefix-aware, corrected by the engines' events: what they have cached and dropped.

    `RouteRequest.blocks` must carry the names that the events use. Until its engine reports a
    prompt, the replica that got it counts as its holder.
    """

    def stored(self, replica: str, blocks: Sequence[int]) -> None:
        """A replica's engine has cached these blocks of one prompt."""
        self.tree.add(blocks, replica)

    def removed(self, replica: str, blocks: Iterable[int]) -> None:
        """A replica's engine has dropped these blocks."""
        self.tree.remove(blocks, replica)


def kv_aware_in(policy: RoutingPolicy) -> KVAware | None:
    """The KV-aware policy in `policy`: that itself, or the one that it wraps."""
    inner = getattr(policy, "policy", policy)
    return inner if isinstance(inner, KVAware) else None
