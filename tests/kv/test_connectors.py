import os
import socket
import sys
from types import SimpleNamespace

import pytest

from penstock.errors import ConfigError, EngineStartError, MissingExtraError
from penstock.kv import base as kv_base, nixl
from penstock.kv.base import Identity, Site, lease_ports, make_connector, mismatch

ENGINE = "vllm 0.32.0"
NIXL = {"kv_connector": "NixlConnector"}
PREFILL = Site(role="prefill", cpu=True)
DECODE = Site(role="decode", cpu=True)


@pytest.fixture
def with_nixl(monkeypatch):
    """As if NIXL were installed: what it would do is not asked for here."""
    monkeypatch.setitem(vars(nixl), "NixlWrapper", object)
    monkeypatch.setattr(nixl, "package_name", lambda: "nixl")
    monkeypatch.setattr(nixl, "version", lambda: "1.5.1")
    for name in ("UCX_TLS", "UCX_NET_DEVICES"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def own_ports(monkeypatch):
    """As if no other process of this host used or leased any: one that does would change which is
    the first.
    """
    monkeypatch.setattr(kv_base, "_LEASES", f"\0penstock-test-{os.getpid()}-")
    monkeypatch.setattr(kv_base, "_free", lambda host, port: True)


@pytest.fixture
def made():
    """Setups that are released when the test ends."""
    setups = []

    def make(config, site=PREFILL):
        setups.append(make_connector(config).setup(site, ENGINE))
        return setups[-1]

    yield make
    for setup in setups:
        setup.release()


class TestNixl:
    def test_what_an_engine_is_started_with(self, with_nixl, made):
        setup = made({**NIXL, "kv_connector_extra_config": {"kv_lease_duration": 60}})
        port = setup.leases[0].port
        assert setup.config == {
            "kv_connector": "NixlConnector",
            "kv_role": "kv_producer",
            "kv_load_failure_policy": "recompute",
            "kv_connector_extra_config": {"kv_lease_duration": 60},
            "engine_id": setup.identity.engine_id,
        }
        assert setup.environment == {
            "VLLM_NIXL_SIDE_CHANNEL_HOST": "127.0.0.1",
            "VLLM_NIXL_SIDE_CHANNEL_PORT": str(port),
            "UCX_TLS": "tcp,self",
            "UCX_NET_DEVICES": "lo",
        }
        assert setup.identity == Identity(
            connector="NixlConnector",
            engine=ENGINE,
            library="nixl 1.5.1",
            engine_id=setup.identity.engine_id,
        )

    def test_the_users_choices_hold(self, with_nixl, made, monkeypatch):
        monkeypatch.setenv("UCX_TLS", "all")
        given = {
            **NIXL,
            "kv_role": "kv_both",
            "kv_load_failure_policy": "fail",
            "engine_id": "mine",
        }
        setup = made(
            given, Site(role="decode", cpu=True, port_bases={"NIXL_SIDE_CHANNEL_PORT_BASE": 31000})
        )
        assert setup.config["kv_role"] == "kv_both"
        assert setup.config["kv_load_failure_policy"] == "fail"
        assert setup.config["engine_id"].startswith("mine-")
        assert "UCX_TLS" not in setup.environment
        assert 31000 <= setup.leases[0].port < 31100

    def test_only_loopback_on_the_cpu_is_told_its_network(self, with_nixl, made):
        assert "UCX_NET_DEVICES" not in made(NIXL, Site(host="127.0.0.1")).environment

    def test_replicas_of_one_host_have_ports_and_ids_of_their_own(self, with_nixl, made):
        setups = [
            made(NIXL, Site(role=role, ranks=2))
            for role in ("prefill", "decode", "prefill", "decode")
        ]
        ports = [
            number
            for setup in setups
            for number in (setup.leases[0].port, setup.leases[0].port + 1)
        ]
        assert len(set(ports)) == 8
        assert len({setup.config["engine_id"] for setup in setups}) == 4
        assert made(NIXL).leases[0].port < 22000 <= setups[1].leases[0].port

    def test_the_ports_it_takes_are_told_beforehand(self, with_nixl, made):
        for site, base in ((PREFILL, 20000), (DECODE, 22000), (Site(), 20000)):
            assert make_connector(NIXL).ports(site) == {"NIXL_SIDE_CHANNEL_PORT_BASE": base}
            assert made(NIXL, site).leases[0].port >= base
        chosen = Site(role="decode", port_bases={"NIXL_SIDE_CHANNEL_PORT_BASE": 31000})
        assert make_connector(NIXL).ports(chosen) == {"NIXL_SIDE_CHANNEL_PORT_BASE": 31000}

    def test_without_nixl(self, monkeypatch):
        monkeypatch.setitem(vars(nixl), "NixlWrapper", None)
        with pytest.raises(MissingExtraError, match="The NixlConnector needs the package"):
            make_connector(NIXL).setup(PREFILL, ENGINE)

    def test_what_a_hand_over_must_hold(self, with_nixl):
        connector = make_connector(NIXL)
        sender = Identity(connector="NixlConnector", engine=ENGINE, engine_id="e")
        whole = {
            "remote_engine_id": "e_dp1",
            "remote_request_id": "r",
            "remote_host": "127.0.0.1",
            "remote_port": 20000,
        }
        assert connector.misses(whole, sender) == ""
        assert connector.misses({**whole, "remote_host": ""}, sender) == "it has no remote_host"
        assert connector.misses(None, sender) == "it has no remote_engine_id"
        assert "points to 'other'" in connector.misses(
            {**whole, "remote_engine_id": "other"}, sender
        )

    @pytest.mark.parametrize("base", [80, "20000", True, 70000])
    def test_a_wrong_port_base(self, with_nixl, base):
        with pytest.raises(ConfigError, match=r"experimental_configs\.NIXL_SIDE_CHANNEL_PORT_BASE"):
            make_connector(NIXL).setup(
                Site(port_bases={"NIXL_SIDE_CHANNEL_PORT_BASE": base}), ENGINE
            )


class TestOthers:
    def test_shared_storage(self, made, tmp_path):
        extra = {"shared_storage_path": str(tmp_path)}
        setup = made({"kv_connector": "SharedStorageConnector", "kv_connector_extra_config": extra})
        assert setup.config["kv_connector"] == "ExampleConnector"
        assert setup.config["kv_role"] == "kv_both"
        connector = make_connector(
            {"kv_connector": "ExampleConnector", "kv_connector_extra_config": extra}
        )
        assert connector.request_params() is None
        assert connector.misses(None, setup.identity) == ""
        assert not connector.tells_adapters_apart

    @pytest.mark.parametrize(
        "extra", [{}, {"shared_storage_path": "relative"}, {"shared_storage_path": 5}]
    )
    def test_shared_storage_wants_a_folder(self, extra):
        with pytest.raises(ConfigError, match="shared_storage_path: must be the absolute path"):
            make_connector({"kv_connector": "ExampleConnector", "kv_connector_extra_config": extra})

    def test_lmcache_has_a_channel_of_its_own(self, made, monkeypatch):
        monkeypatch.setattr("penstock.kv.connectors.find_spec", lambda name: object())
        monkeypatch.setattr(
            "penstock.kv.connectors.metadata", SimpleNamespace(version=lambda name: "0.4")
        )
        given = {
            "kv_connector": "LMCacheConnectorV1",
            "kv_connector_extra_config": {"lmcache_rpc_port": "x"},
        }
        ports = {
            made(given).config["kv_connector_extra_config"]["lmcache_rpc_port"] for _ in range(2)
        }
        assert len(ports) == 2
        assert all(port.startswith("x-") for port in ports)
        assert given["kv_connector_extra_config"] == {"lmcache_rpc_port": "x"}

    @pytest.mark.skipif("lmcache" in sys.modules, reason="it is here")
    def test_without_lmcache(self):
        with pytest.raises(
            MissingExtraError, match="The LMCacheConnectorV1 needs the package 'lmcache'"
        ):
            make_connector({"kv_connector": "LMCacheConnectorV1"}).setup(PREFILL, ENGINE)

    def test_multi_sets_up_each_under_one_id(self, with_nixl, made, tmp_path):
        example = {
            "kv_connector": "ExampleConnector",
            "kv_connector_extra_config": {"shared_storage_path": str(tmp_path)},
        }
        given = {
            "kv_connector": "MultiConnector",
            "kv_connector_extra_config": {"connectors": [NIXL, example]},
        }
        setup = made(given)
        parts = setup.config["kv_connector_extra_config"]["connectors"]
        assert [part["kv_connector"] for part in parts] == ["NixlConnector", "ExampleConnector"]
        assert setup.config["engine_id"] == setup.identity.engine_id
        # VLLM gives each that of all, and takes none from here.
        assert not any("engine_id" in part for part in parts)
        assert setup.identity.library == "nixl 1.5.1"
        assert setup.environment["VLLM_NIXL_SIDE_CHANNEL_PORT"] == str(setup.leases[0].port)
        connector = make_connector(given)
        assert connector.request_params() == {"do_remote_decode": True, "do_remote_prefill": False}
        assert not connector.tells_adapters_apart
        assert connector.ports(PREFILL) == {"NIXL_SIDE_CHANNEL_PORT_BASE": 20000}

    def test_multi_has_others_that_are_the_engines_own(self, with_nixl, made):
        own = {"kv_connector": "OffloadingConnector", "kv_connector_extra_config": {"blocks": 8}}
        extra: dict = {"connectors": [NIXL, own]}
        given = {"kv_connector": "MultiConnector", "kv_connector_extra_config": extra}
        _, part = made(given).config["kv_connector_extra_config"]["connectors"]
        assert part["kv_connector"] == "OffloadingConnector"
        assert part["kv_connector_extra_config"] == {"blocks": 8}
        for wrong, why in (
            ([own, NIXL], "unknown connector 'OffloadingConnector'"),
            ([NIXL, {}], "a connector must be named"),
            ([NIXL, {"kv_connector": "MooncakeConnector"}], "must know the decode side"),
        ):
            extra["connectors"] = wrong
            with pytest.raises(ConfigError, match=why):
                make_connector(given)

    def test_multi_gives_back_what_it_took_when_one_fails(self, with_nixl, own_ports):
        given = {"connectors": [NIXL, {"kv_connector": "LMCacheConnectorV1"}]}
        connector = make_connector(
            {"kv_connector": "MultiConnector", "kv_connector_extra_config": given}
        )
        before = lease_ports(20000)
        before.release()
        with pytest.raises(MissingExtraError):
            connector.setup(PREFILL, ENGINE)
        after = lease_ports(20000)
        after.release()
        assert after.port == before.port

    @pytest.mark.parametrize(
        "config",
        [
            {"kv_connector": "MultiConnector"},
            {"kv_connector": "MultiConnector", "kv_connector_extra_config": {"connectors": []}},
            {
                "kv_connector": "MultiConnector",
                "kv_connector_extra_config": {
                    "connectors": [
                        {
                            "kv_connector": "MultiConnector",
                            "kv_connector_extra_config": {"connectors": [NIXL]},
                        }
                    ]
                },
            },
        ],
    )
    def test_multi_wants_a_list_of_others(self, config):
        with pytest.raises(ConfigError, match="connectors"):
            make_connector(config)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({}, "kv_connector: a connector must be named"),
        ({"kv_connector": "NixlConector"}, "Did you mean 'NixlConnector'"),
        ({**NIXL, "kv_rol": "x"}, "unknown key 'kv_rol'. Did you mean 'kv_role'"),
        ({**NIXL, "kv_role": "kv_boht"}, "Did you mean 'kv_both'"),
        ({**NIXL, "kv_connector_extra_config": []}, "must be a mapping"),
        ("NixlConnector", "must be a mapping"),
    ],
)
def test_a_wrong_configuration_names_its_field(config, told):
    with pytest.raises(ConfigError, match=told) as caught:
        make_connector(config)
    assert caught.value.field.startswith("engine_kwargs.kv_transfer_config")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({}, ""),
        (
            {"connector": "ExampleConnector"},
            "its connector is ExampleConnector, and ours NixlConnector",
        ),
        ({"engine": "vllm 0.31.0"}, "its engine is vllm 0.31.0"),
        ({"library": "nixl 1.4.0"}, "its library is nixl 1.4.0"),
        ({"adapter": "a@2"}, "its adapter is a@2, and ours a@1"),
        ({"adapter": ""}, "its adapter is none"),
        ({"engine_id": "d"}, "both engines are called 'd'"),
    ],
)
def test_engines_of_one_kind_understand_each_other(change, told):
    own = {
        "connector": "NixlConnector",
        "engine": ENGINE,
        "library": "nixl 1.5.1",
        "adapter": "a@1",
    }
    answer = mismatch(
        Identity(engine_id="d", **own), Identity(**{"engine_id": "p", **own, **change})
    )
    assert answer.startswith(told)
    assert bool(answer) == bool(told)


class TestPorts:
    def test_leases_do_not_overlap_and_come_back(self, own_ports):
        first = lease_ports(33000, 3)
        second = lease_ports(33000, 2)
        assert second.port == first.port + 3
        first.release()
        first.release()
        again = lease_ports(33000, 3)
        assert again.port == first.port
        for lease in (second, again):
            lease.release()

    def test_a_port_that_somebody_listens_at_is_passed_over(self):
        with socket.socket() as busy:
            busy.bind(("127.0.0.1", 0))
            busy.listen()
            number = busy.getsockname()[1]
            lease = lease_ports(number)
            lease.release()
            assert lease.port > number

    def test_a_lease_can_be_bound(self):
        lease = lease_ports(20100)  # below those that the system gives out
        with socket.socket() as mine:
            mine.bind(("127.0.0.1", lease.port))
        lease.release()

    def test_none_left(self):
        with pytest.raises(EngineStartError, match="ports are free"):
            lease_ports(65530, 10)
