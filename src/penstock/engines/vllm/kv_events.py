"""What vLLM tells of its KV cache: blocks of tokens that it stored or dropped, over a socket of its
publisher's.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import zmq
import zmq.asyncio

from penstock.engines.prefix_index import block_hashes
from penstock.engines.vllm.library import AllBlocksCleared, BlockRemoved, BlockStored, KVEventBatch
from penstock.kv.cached_blocks import CachedBlocks

_log = logging.getLogger(__name__)
_MEDIA = (None, "GPU")
"""Where the blocks are that an engine can use at once; on the CPU they are called so too."""


class KVEvents:
    """Reads the events of one engine into `blocks`, until `close`. `endpoints` are those of its
    ranks.
    """

    def __init__(self, endpoints: Sequence[str], blocks: CachedBlocks) -> None:
        self._blocks = blocks
        self._decode = msgspec.msgpack.Decoder(KVEventBatch).decode
        self._context = zmq.asyncio.Context()
        self._readers = [asyncio.create_task(self._read(endpoint)) for endpoint in endpoints]

    async def close(self) -> None:
        """Read no more; what the engine held is gone."""
        for reader in self._readers:
            reader.cancel()
        await asyncio.gather(*self._readers, return_exceptions=True)
        self._context.destroy(linger=0)
        self._blocks.clear()

    async def _read(self, endpoint: str) -> None:
        with self._context.socket(zmq.SUB) as socket:
            socket.set_hwm(0)  # what the engine has told it will not tell again
            socket.subscribe(b"")
            socket.connect(endpoint)
            names = BlockNames()
            expected: int | None = None
            while True:
                _, number, payload = await socket.recv_multipart()
                sequence = int.from_bytes(number, "big")
                if expected is not None and sequence != expected:
                    _log.warning(
                        "%d KV events were lost: what is cached is learned anew",
                        sequence - expected,
                    )
                    self._blocks.clear()
                expected = sequence + 1
                for event in self._decode(payload).events:
                    names.apply(event, self._blocks)


class BlockNames:
    """vLLM's hashes of blocks as names that are made of their tokens, which vLLM's need not be."""

    def __init__(self) -> None:
        self._names: dict[Any, int] = {}

    def apply(self, event: Any, blocks: CachedBlocks) -> None:
        if isinstance(event, AllBlocksCleared):
            self._names.clear()
            blocks.clear()
        elif event.medium not in _MEDIA or getattr(event, "group_idx", None) not in (None, 0):
            return
        elif isinstance(event, BlockStored):
            blocks.stored(self._stored(event))
        elif isinstance(event, BlockRemoved):
            blocks.removed(
                [self._names.pop(block) for block in event.block_hashes if block in self._names]
            )

    def _stored(self, event: Any) -> list[int]:
        root = token_root(event.lora_name)
        if event.parent_block_hash is not None:
            known = self._names.get(event.parent_block_hash)
            if known is None:
                return []  # of a prompt whose beginning was not told
            root = known
        keys = getattr(event, "extra_keys", None) or ()  # not in the oldest version
        if any(set(extra or ()) - {event.lora_name} for extra in keys):
            # Tokens that stand for pictures are alike for all of them.
            root = hash((root, repr(keys)))
        names = block_hashes(event.token_ids, event.block_size, root)
        self._names.update(zip(event.block_hashes, names, strict=False))
        return names


def token_root(adapter: str | None) -> int:
    """The root of the names of blocks that are computed with an adapter."""
    return hash(adapter) if adapter else 0


def local_endpoints(config: Mapping[str, Any], ranks: int) -> list[str]:
    """Where a subscriber on this machine finds what `endpoint` publishes, for each rank."""
    place, _, port = str(config["endpoint"]).replace("*", "127.0.0.1").rpartition(":")
    return [f"{place}:{int(port) + rank}" for rank in range(ranks)]
