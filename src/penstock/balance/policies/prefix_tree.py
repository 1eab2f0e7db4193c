"""Which replicas hold which prompt prefixes.

A tree of blocks, kept flat: a block's name depends on all blocks before it, so a name is a node,
and the path of a prompt is found without following links. Memory is bounded; what was used longest
ago leaves first, leaves before roots.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b

BLOCK_BYTES = 256
"""Bytes of prompt that make a block of `byte_blocks`; about 64 tokens of English."""


def byte_blocks(prompt: bytes, size: int = BLOCK_BYTES, most: int = 1024) -> list[int]:
    """Names of the prompt's full blocks, first to last, `most` of them. They mean nothing to
    another process.
    """
    names: list[int] = []
    parent = 0
    for start in range(0, min(len(prompt) - size + 1, size * most), size):
        parent = hash((parent, prompt[start : start + size]))
        names.append(parent)
    return names


def shared_blocks(
    prompt: bytes, root: str = "", size: int = BLOCK_BYTES, most: int = 1024
) -> list[int]:
    """As `byte_blocks`, with names that mean the same to every process. Those of another `root`
    differ.
    """
    names: list[int] = []
    name = root.encode()
    for start in range(0, min(len(prompt) - size + 1, size * most), size):
        name = blake2b(name + prompt[start : start + size], digest_size=8).digest()
        names.append(int.from_bytes(name, "little"))
    return names


class PrefixTree:
    """Holders by block. `capacity` bounds the pairs of a block and a holder."""

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
