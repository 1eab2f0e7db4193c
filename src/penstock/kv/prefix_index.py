"""Which prompt prefixes a paged KV cache holds, kept beside an engine that does not tell.

Blocks of tokens are named by a chained hash, as in vLLM's automatic prefix caching
(https://docs.vllm.ai/en/latest/design/prefix_caching.html): a block's name depends on all tokens
before it, so one lookup a block finds the longest cached prefix. The least recently used blocks
leave first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

BLOCK_SIZE = 32
"""Tokens a KV block holds; OpenVINO's CPU attention uses 32."""


def block_hashes(
    token_ids: Sequence[int], block_size: int = BLOCK_SIZE, root: int = 0
) -> list[int]:
    """Chained hashes of the full blocks of `token_ids`, first to last. An unfilled last block has
    none. Those of another `root` differ.
    """
    hashes: list[int] = []
    parent = root
    for start in range(0, len(token_ids) - block_size + 1, block_size):
        parent = hash((parent, tuple(token_ids[start : start + block_size])))
        hashes.append(parent)
    return hashes


class PrefixIndex:
    """The cached blocks of one KV cache of `capacity` blocks."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._blocks: OrderedDict[int, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._blocks)

    def match(self, hashes: Sequence[int]) -> int:
        """How many of the leading blocks are cached. Counts as a use of each of them."""
        for count, block in enumerate(hashes):
            if block not in self._blocks:
                return count
            self._blocks.move_to_end(block)
        return len(hashes)

    def holds_half(self, hashes: Sequence[int]) -> bool:
        """Whether at least half of these blocks are cached. Does not count as a use."""
        return bool(hashes) and hashes[(len(hashes) - 1) // 2] in self._blocks

    def insert(self, hashes: Sequence[int]) -> list[int]:
        """Note that these blocks are now cached. Gives those that left for them."""
        for block in hashes:
            self._blocks[block] = None
            self._blocks.move_to_end(block)
        return [
            self._blocks.popitem(last=False)[0] for _ in range(len(self._blocks) - self.capacity)
        ]

    def clear(self) -> None:
        self._blocks.clear()
