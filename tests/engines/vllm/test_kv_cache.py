"""What is made of the options that concern the KV cache, and of what vLLM tells of it. No engine is
started.
"""

from importlib import import_module
from types import SimpleNamespace

import pytest

from penstock.engines.vllm import kv_cache
from penstock.engines.vllm.kv_cache import Counts
from penstock.engines.vllm.options import VLLMOptions
from penstock.errors import ConfigError
from penstock.kv.cached_blocks import CachedBlocks
from penstock.kv.prefix_index import block_hashes

NIXL = {
    "transfer_duration": [0.5, 0.25],
    "bytes_transferred": [100, 50],
    "num_failed_transfers": [1],
    "num_failed_handshakes": [1, 1],
    "num_kv_expired_reqs": [1],
}


def options(**engine):
    return VLLMOptions(engine, {}, cpu=True)


class TestConnector:
    def test_one_that_is_known(self):
        given = options(kv_transfer_config={"kv_connector": "NixlConnector"}, enable_lora=True)
        connector = kv_cache.checked_connector(given)
        assert connector is not None
        assert connector.name == "NixlConnector"

    @pytest.mark.parametrize(
        "config", [None, {"kv_connector": "OffloadingConnector", "kv_role": "kv_both"}, object()]
    )
    def test_one_that_is_vllms_own_business(self, config):
        assert kv_cache.checked_connector(options(kv_transfer_config=config)) is None

    def test_adapters_are_not_mixed_up(self, tmp_path):
        extra = {"shared_storage_path": str(tmp_path)}
        config = {"kv_connector": "ExampleConnector", "kv_connector_extra_config": extra}
        assert kv_cache.checked_connector(options(kv_transfer_config=config)) is not None
        with pytest.raises(ConfigError, match="would mix up the caches of adapters"):
            kv_cache.checked_connector(options(kv_transfer_config=config, enable_lora=True))

    @pytest.mark.parametrize(("given", "ranks"), [({}, 1), ({"data_parallel_size": 4}, 4)])
    def test_ranks(self, given, ranks):
        assert kv_cache.ranks(options(**given)) == ranks


class TestEvents:
    def test_they_stay_in_the_engines_folder(self):
        config = kv_cache.events_config(None, "/tmp/penstock-vllm-x")
        assert config["enable_kv_cache_events"] is True
        assert config["endpoint"].startswith("ipc:///tmp/penstock-vllm-x/")

    def test_the_users_endpoint_holds(self):
        assert (
            kv_cache.events_config({"endpoint": "tcp://*:5557"}, "/tmp/x")["endpoint"]
            == "tcp://*:5557"
        )

    @pytest.mark.parametrize(
        ("given", "told"),
        [
            ("zmq", "must be a mapping"),
            ({"publisher": "null"}, "zmq publisher"),
            ({"enable_kv_cache_events": False}, "zmq publisher"),
            ({"endpoint": "ipc:///tmp/x"}, "must end with a port"),
        ],
    )
    def test_what_could_not_be_heard_is_refused(self, given, told):
        with pytest.raises(ConfigError, match=told):
            kv_cache.events_config(given, "/tmp/x")


class TestCounts:
    def stats(self, **changed):
        cache = SimpleNamespace(queries=10, hits=4)
        given = {
            "num_running_reqs": 2,
            "num_waiting_reqs": 1,
            "kv_cache_usage": 0.5,
            "prefix_cache_stats": cache,
            "kv_connector_stats": None,
        }
        return SimpleNamespace(**{**given, **changed})

    def test_steps_add_up(self):
        counts = Counts()
        counts.record(self.stats(), None)
        counts.record(self.stats(kv_connector_stats=NIXL), None)
        counts.record(None, None)
        now = counts.now()
        assert now["steps"] == 2
        assert (now["prefix_cache_queries"], now["prefix_cache_hits"]) == (20, 8)
        assert (now["kv_transfers"], now["kv_transfer_bytes"], now["kv_transfer_seconds"]) == (
            2,
            150,
            0.75,
        )
        assert (now["kv_transfer_failures"], now["kv_expired_requests"]) == (3, 1)
        assert (now["requests_running"], now["requests_waiting"], now["kv_cache_usage"]) == (
            2,
            1,
            0.5,
        )

    @pytest.mark.parametrize("part", [NIXL, {"data": NIXL}])
    def test_one_of_several_connectors(self, part):
        counts = Counts()
        counts.record(
            self.stats(kv_connector_stats={"NixlConnector": part, "Other": {"data": {}}}), None
        )
        assert counts.now()["kv_transfers"] == 2

    def test_ranks_are_summed(self):
        counts = Counts()
        for rank in range(2):
            counts.record(self.stats(), None, engine_idx=rank)
        assert counts.now()["requests_running"] == 4


@pytest.mark.vllm
async def test_events_that_cannot_be_read_leave_nothing_known(tmp_path, caplog):
    zmq = import_module("zmq.asyncio")
    endpoint = f"ipc://{tmp_path}/events"
    blocks = CachedBlocks()
    blocks.asked([1], [5])
    blocks.stored([5])
    with zmq.Context() as context, context.socket(import_module("zmq").XPUB) as socket:
        socket.bind(endpoint)
        reader = kv_cache.KVEvents([endpoint], blocks)
        await socket.recv()  # it listens
        await socket.send_multipart([b"", bytes(8), b"garbage"])
        await reader._readers[0]
        assert blocks.held() == []
        await reader.close()
    assert "KV events cannot be read" in caplog.text


@pytest.mark.vllm
class TestBlockNames:
    """With vLLM's own events."""

    @pytest.fixture
    def told(self):
        """Blocks, and a function that takes an event."""
        events = import_module("vllm.distributed.kv_events")
        blocks, names = CachedBlocks(), kv_cache.BlockNames()
        return events, blocks, lambda event: names.apply(event, blocks)

    def stored(self, events, hashes, parent, tokens, **changed):
        given = {"block_size": 2, "lora_id": None, "medium": "GPU", "lora_name": None}
        return events.BlockStored(
            block_hashes=hashes, parent_block_hash=parent, token_ids=tokens, **{**given, **changed}
        )

    def names(self, tokens, adapter=None):
        return block_hashes(tokens, 2, kv_cache.token_root(adapter))

    def test_blocks_are_those_of_the_prompts_tokens(self, told):
        events, blocks, tell = told
        blocks.asked([1, 2, 3], self.names([1, 2, 3, 4, 5, 6]))
        tell(self.stored(events, [b"a", b"b"], None, [1, 2, 3, 4]))
        assert blocks.held() == [1, 2]
        tell(self.stored(events, [b"c"], b"b", [5, 6]))
        assert blocks.held() == [1, 2, 3]
        tell(events.BlockRemoved(block_hashes=[b"c"], medium="GPU"))
        assert blocks.held() == [1, 2]
        tell(events.AllBlocksCleared())
        assert blocks.held() == []

    def test_adapters_and_pictures_have_blocks_of_their_own(self, told):
        events, blocks, tell = told
        blocks.asked([1], self.names([1, 2]))
        blocks.asked([2], self.names([1, 2], "a"))
        tell(self.stored(events, [b"p"], None, [1, 2], extra_keys=[("picture",)]))
        assert blocks.held() == []
        tell(self.stored(events, [b"a"], None, [1, 2], lora_name="a", extra_keys=[("a",)]))
        assert blocks.held() == [2]
        tell(self.stored(events, [b"b"], None, [1, 2]))
        assert blocks.held() == [1, 2]

    def test_what_is_elsewhere_or_without_a_beginning_is_not_held(self, told):
        events, blocks, tell = told
        blocks.asked([1], self.names([1, 2]))
        tell(self.stored(events, [b"a"], None, [1, 2], medium="CPU"))
        tell(self.stored(events, [b"b"], b"unknown", [1, 2]))
        tell(self.stored(events, [b"c"], None, [1, 2], group_idx=1))
        assert blocks.held() == []

    def test_each_rank_has_an_endpoint(self):
        assert kv_cache.local_endpoints({"endpoint": "tcp://*:5557"}, 2) == [
            "tcp://127.0.0.1:5557",
            "tcp://127.0.0.1:5558",
        ]
