"""The engine's KV cache as others see it: the connector that exchanges caches, the events about
cached blocks, and the engine's counters.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from penstock.engines.side_by_side import end_all
from penstock.engines.vllm.options import BATCH_STATS, VLLMOptions, installed
from penstock.errors import ConfigError, class_and_text
from penstock.kv.base import Connector, Setup, Site, configured_connector
from penstock.kv.cached_blocks import CachedBlocks
from penstock.kv.prefix_index import block_hashes

EVENTS_FIELD = "engine_kwargs.kv_events_config"
_SOCKET = "kv-events-tcp:1000"
"""The name of a file. vLLM adds a rank's number only to what looks like a TCP port."""
_MEDIA = (None, "GPU")
"""The media of blocks that an engine can use at once. The CPU build has these names too."""

_log = logging.getLogger(__name__)


def checked_connector(options: VLLMOptions) -> Connector | None:
    """As `configured_connector`. Raises `ConfigError` for a connector that mixes up the caches of
    adapters if there are any.
    """
    connector = configured_connector(options.engine)
    if (
        connector is not None
        and options.engine.get("enable_lora")
        and not connector.tells_adapters_apart
    ):
        raise ConfigError(
            f"the {connector.name} would mix up the caches of adapters",
            field="engine_kwargs.kv_transfer_config.kv_connector",
            value=connector.name,
            hint="Serve without adapters, or use the NixlConnector.",
        )
    return connector


def set_up(connector: Connector, options: VLLMOptions, site: Site) -> tuple[VLLMOptions, Setup]:
    """The options and the setup for the next engine. Raises the errors of `Connector.setup`."""
    site = msgspec.structs.replace(site, ranks=ranks(options), cpu=options.cpu)
    setup = connector.setup(site, f"vllm {installed().version}")
    return with_engine(options, kv_transfer_config=setup.config), setup


def ranks(options: VLLMOptions) -> int:
    """The number of data-parallel engine cores."""
    size = options.engine.get("data_parallel_size", 1)
    return size if isinstance(size, int) else 1


def events_config(given: Any, folder: str) -> dict[str, Any]:
    """The `kv_events_config` to start with: the user's, else events to a socket in `folder`, which
    only this machine's same user can reach. Raises `ConfigError`.
    """
    if given is not None and not isinstance(given, Mapping):
        raise ConfigError("must be a mapping", field=EVENTS_FIELD, value=given)
    config = {"enable_kv_cache_events": True, "publisher": "zmq", **(given or {})}
    if config["publisher"] != "zmq" or not config["enable_kv_cache_events"]:
        raise ConfigError(
            "routing by KV caches needs events from the zmq publisher",
            field=EVENTS_FIELD,
            value=given,
        )
    config.setdefault("endpoint", f"ipc://{folder}/{_SOCKET}")
    if not str(config["endpoint"]).rpartition(":")[2].isdecimal():
        raise ConfigError(
            "must end with a port", field=f"{EVENTS_FIELD}.endpoint", value=config["endpoint"]
        )
    return config


def with_engine(options: VLLMOptions, **changes: Any) -> VLLMOptions:
    """The options with other engine arguments."""
    return msgspec.structs.replace(options, engine={**options.engine, **changes})


class KVEvents:
    """Reads an engine's events into `blocks`, until `close`. `endpoints` has one for each rank.
    vLLM must have been imported.
    """

    def __init__(self, endpoints: Sequence[str], blocks: CachedBlocks) -> None:
        import zmq.asyncio  # vLLM brings it

        from penstock.engines.vllm.library import KVEventBatch

        self._blocks = blocks
        self._decode = msgspec.msgpack.Decoder(KVEventBatch).decode
        self._context = zmq.asyncio.Context()
        self._readers = [asyncio.create_task(self._read(endpoint)) for endpoint in endpoints]

    async def close(self) -> None:
        """Stop reading, and clear the blocks."""
        await end_all(self._readers)
        self._context.destroy(linger=0)
        self._blocks.clear()

    async def _read(self, endpoint: str) -> None:
        import zmq

        with self._context.socket(zmq.SUB) as socket:
            socket.set_hwm(0)  # no event is sent twice
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
                try:
                    for event in self._decode(payload).events:
                        names.apply(event, self._blocks)
                except Exception as error:
                    _log.warning(
                        "vLLM's KV events cannot be read, so what is cached is not known: %s",
                        class_and_text(error),
                    )
                    self._blocks.clear()
                    return


class BlockNames:
    """Names vLLM's blocks by their tokens. vLLM's own hashes may depend on more than these."""

    def __init__(self) -> None:
        self._names: dict[Any, int] = {}

    def apply(self, event: Any, blocks: CachedBlocks) -> None:
        kind = type(event).__name__  # the tag of its message
        if kind == "AllBlocksCleared":
            self._names.clear()
            blocks.clear()
        elif event.medium not in _MEDIA or getattr(event, "group_idx", None) not in (None, 0):
            return
        elif kind == "BlockStored":
            blocks.stored(self._stored(event))
        elif kind == "BlockRemoved":
            blocks.removed(
                [self._names.pop(block) for block in event.block_hashes if block in self._names]
            )

    def _stored(self, event: Any) -> list[int]:
        root = token_root(event.lora_name)
        if event.parent_block_hash is not None:
            known = self._names.get(event.parent_block_hash)
            if known is None:
                return []  # the beginning of its prompt is unknown
            root = known
        keys = getattr(event, "extra_keys", None) or ()  # the oldest version lacks them
        if any(set(extra or ()) - {event.lora_name} for extra in keys):
            # The tokens of all pictures are alike.
            root = hash((root, repr(keys)))
        names = block_hashes(event.token_ids, event.block_size, root)
        self._names.update(zip(event.block_hashes, names, strict=False))
        return names


def token_root(adapter: str | None) -> int:
    """The root of the names of an adapter's blocks; 0 for the base model."""
    return hash(adapter) if adapter else 0


def local_endpoints(config: Mapping[str, Any], ranks: int) -> list[str]:
    """The endpoint of each rank, for a subscriber on this machine."""
    place, _, port = str(config["endpoint"]).replace("*", "127.0.0.1").rpartition(":")
    return [f"{place}:{int(port) + rank}" for rank in range(ranks)]


class Counts:
    """Counts requests, cache hits and transfers. It replaces vLLM's loggers of statistics."""

    def __init__(self) -> None:
        self.values: defaultdict[str, float] = defaultdict(float)
        self._latest: dict[int, Any] = {}

    def __call__(self, vllm_config: Any, engine_index: int = 0) -> Counts:
        """vLLM asks for one logger per rank; this one serves all ranks."""
        return self

    def record(
        self,
        scheduler_stats: Any,
        iteration_stats: Any,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
    ) -> None:
        """Add the statistics of a step. vLLM calls this."""
        if scheduler_stats is None:
            return
        self._latest[engine_idx] = scheduler_stats
        self.values["steps"] += 1
        cache = scheduler_stats.prefix_cache_stats
        self.values["prefix_cache_queries"] += cache.queries
        self.values["prefix_cache_hits"] += cache.hits
        connector = dict(scheduler_stats.kv_connector_stats or {})
        self.values.update(connector.pop(BATCH_STATS, {}))
        for stats in _nixl(connector):
            self.values["kv_transfers"] += len(stats.get("transfer_duration", ()))
            self.values["kv_transfer_bytes"] += sum(stats.get("bytes_transferred", ()))
            self.values["kv_transfer_seconds"] += sum(stats.get("transfer_duration", ()))
            failed = ("num_failed_transfers", "num_failed_handshakes", "num_failed_notifications")
            self.values["kv_transfer_failures"] += sum(sum(stats.get(name, ())) for name in failed)
            self.values["kv_expired_requests"] += sum(stats.get("num_kv_expired_reqs", ()))

    def now(self) -> dict[str, float]:
        """All counters, and the load at this moment."""
        latest = self._latest.values()
        return {
            **self.values,
            "requests_running": sum(stats.num_running_reqs for stats in latest),
            "requests_waiting": sum(stats.num_waiting_reqs for stats in latest),
            "kv_cache_usage": max((stats.kv_cache_usage for stats in latest), default=0.0),
        }

    def log_engine_initialized(self) -> None: ...

    def log(self) -> None: ...

    def record_admission_rejection(self, reason: str) -> None: ...

    def record_sleep_state(self, is_awake: int, level: int) -> None: ...


def _nixl(stats: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """NIXL's statistics among those of the connector, which may combine several connectors."""
    if "transfer_duration" in stats:
        return [stats]
    parts = [part.get("data", part) if isinstance(part, Mapping) else {} for part in stats.values()]
    return [part for part in parts if "transfer_duration" in part]
