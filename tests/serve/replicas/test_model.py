"""A model whose replicas are servers of their own, here on loopback: forwarding, choosing, losing,
controlling.
"""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from penstock.balance.policies.base import RouteRequest
from penstock.engines.base import Capabilities, Stated
from penstock.engines.simulated.engine import SimulatedEngine
from penstock.errors import (
    EngineDeadError,
    EngineError,
    EngineTimeoutError,
    ModelNotFoundError,
    RequestError,
    UnavailableError,
    UnsupportedError,
)
from penstock.serve.config.settings import Limits
from penstock.serve.replicas.model import RemoteModel
from penstock.serve.replicas.runtime import (
    DesiredState,
    InMemoryStore,
    ReplicaInfo,
    change_desired,
)
from penstock.types import (
    ChatRequest,
    Classification,
    Classifications,
    ClassifyRequest,
    CompletionRequest,
    EmbeddingRequest,
    RerankRequest,
    Sampling,
    TokenizeRequest,
)
from replica_cluster import KEY, Make, config, until

CHAT = {
    "model": "m",
    "messages": [{"role": "user", "content": "hello"}],
    "temperature": 0,
    "max_tokens": 8,
}


def events(text: str) -> list[str]:
    return [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]


class TestForwarding:
    async def test_an_answer_is_that_of_a_replica(self, cluster: Make) -> None:
        one = await cluster()
        answer = await one.client.post(
            "/v1/chat/completions", json=CHAT, headers={"x-request-id": "mine"}
        )
        assert answer.status_code == 200
        assert answer.headers["x-request-id"] == "mine"
        assert answer.json()["id"].startswith("chatcmpl-mine-")
        assert "x-penstock-load" not in answer.headers
        assert len(answer.json()["choices"][0]["message"]["content"]) == 8

    async def test_a_stream_is_that_of_a_replica(self, cluster: Make) -> None:
        one = await cluster()
        answer = await one.client.post("/v1/chat/completions", json={**CHAT, "stream": True})
        assert answer.headers["content-type"].startswith("text/event-stream")
        received = events(answer.text)
        assert received[-1] == "[DONE]"
        assert len(received) == 1 + 8 + 1

    @pytest.mark.parametrize(
        ("path", "body"),
        [
            ("/v1/completions", {"model": "m", "prompt": "hello"}),
            ("/v1/responses", {"model": "m", "input": "hello"}),
            (
                "/v1/messages",
                {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]},
            ),
            ("/v1/embeddings", {"model": "m", "input": ["a", "b"]}),
            ("/v1/rerank", {"model": "m", "query": "a", "documents": ["b"]}),
            ("/tokenize", {"model": "m", "prompt": "hi"}),
            ("/detokenize", {"model": "m", "tokens": [104, 105]}),
            ("/tokenize", {"model": None, "messages": [{"role": "user", "content": "hi"}]}),
            ("/invocations", {"prompt": "hello"}),
        ],
    )
    async def test_every_endpoint_is_forwarded(
        self, cluster: Make, path: str, body: dict[str, Any]
    ) -> None:
        one = await cluster()
        answer = await one.client.post(path, json=body)
        assert answer.status_code == 200, answer.text

    async def test_what_has_no_body_is_forwarded(self, cluster: Make) -> None:
        one = await cluster()
        for path in ("/tokenizer_info", "/tokenizer_info?model=m"):
            answer = await one.client.get(path)
            assert answer.json()["tokenizer_class"] == "simulated", answer.text
        assert (await one.client.get("/tokenizer_info?model=x")).status_code == 404
        info = await one.model.tokenizer_info()
        assert info.kind == "simulated"
        tokens = await one.model.tokens(TokenizeRequest("ab", names=True))
        assert (tokens.ids, tokens.names) == ([97, 98], ["a", "b"])

    async def test_adapters_come_and_go_on_every_replica(
        self, cluster: Make, tmp_path: Path
    ) -> None:
        one = await cluster(2)
        (tmp_path / "adapter_config.json").write_text("{}")
        load = {"lora_name": "new", "lora_path": str(tmp_path)}
        missing = {"lora_name": "none", "lora_path": str(tmp_path / "none")}
        gone = await one.client.post("/v1/load_lora_adapter", json=missing)
        assert (gone.status_code, gone.json()["error"]["param"]) == (404, "lora_path")
        assert str(tmp_path / "none") in gone.text
        for status in (200, 400):  # the second time the name is taken
            answer = await one.client.post("/v1/load_lora_adapter", json=load)
            assert answer.status_code == status, answer.text
        assert answer.json()["error"]["param"] == "lora_name"
        assert await one.model.adapters() == ["new"]
        later = await one.add()  # takes over what was asked for
        for server in one.servers.values():
            assert await server.model.adapters() == ["new"]
        answer = await one.client.post("/v1/chat/completions", json={**CHAT, "model": "new"})
        assert answer.status_code == 200
        unload = {"lora_name": "new"}
        for status in (200, 404):
            answer = await one.client.post("/v1/unload_lora_adapter", json=unload)
            assert answer.status_code == status, answer.text
        assert await one.model.adapters() == await later.model.adapters() == []
        answer = await one.client.post("/v1/chat/completions", json={**CHAT, "model": "new"})
        assert answer.status_code == 404

    async def test_an_adapter_that_one_replica_cannot_load_none_has(
        self, cluster: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def fail(*_: Any) -> None:
            raise EngineError("no room")

        one = await cluster(2)
        (tmp_path / "adapter_config.json").write_text("{}")
        load = {"lora_name": "new", "lora_path": str(tmp_path)}
        with monkeypatch.context() as patched:
            patched.setattr(one.servers["r1"].server.engine, "resolve_lora", fail)
            results = await one.model.control("load_lora_adapter", load)
        assert [result["ok"] for result in results] == [True, False]
        assert [await each.model.adapters() for each in one.servers.values()] == [[], []]
        results = await one.model.control("load_lora_adapter", load)
        assert [result["ok"] for result in results] == [True, True]

    async def test_a_form_names_its_model(self, cluster: Make) -> None:
        one = await cluster()
        audio = {"file": ("a.wav", b"RIFF")}
        answer = await one.client.post("/v1/audio/transcriptions", data={"model": "m"}, files=audio)
        assert answer.status_code == 400  # of the simulated engine
        answer = await one.client.post(
            "/v1/audio/transcriptions", data={"model": "mm"}, files=audio
        )
        assert answer.status_code == 404

    async def test_errors_of_the_replica_come_back(self, cluster: Make) -> None:
        one = await cluster()
        answer = await one.client.post("/v1/chat/completions", json={**CHAT, "temperature": 9})
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "temperature"

    @pytest.mark.parametrize("body", [b"{", b"[]", b'{"model": 5}', b'{"model": "other"}', b"\xff"])
    async def test_what_is_no_request_starts_no_replica(self, cluster: Make, body: bytes) -> None:
        one = await cluster(0)
        headers = {"content-type": "application/json"}
        answer = await one.client.post("/v1/chat/completions", content=body, headers=headers)
        assert answer.status_code in (400, 404)
        assert not one.obtained

    async def test_the_operators_limits_hold_on_the_replica(self, cluster: Make) -> None:
        one = await cluster(limits=Limits(max_tokens=3))
        answer = await one.client.post("/v1/chat/completions", json=CHAT)
        assert answer.status_code == 400
        assert "max_tokens" in answer.json()["error"]["message"]

    async def test_a_replica_answers_only_who_has_its_key(self, cluster: Make) -> None:
        one = await cluster()
        (server,) = one.servers.values()
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.info.port}") as stranger:
            for path in ("/v1/chat/completions", "/penstock/control"):
                assert (await stranger.post(path, json=CHAT)).status_code == 401

    async def test_a_client_that_leaves_frees_the_replicas_slot(self, cluster: Make) -> None:
        one = await cluster(
            model=config(engine_kwargs={"time_per_token_ms": 5, "output_tokens": 30_000})
        )
        (server,) = one.servers.values()
        request = ChatRequest([{"role": "user", "content": "hello"}])
        stream = one.model.chat(request)
        await anext(stream)
        assert server.ongoing == 1
        await stream.aclose()
        await until(lambda: server.ongoing == 0)


class TestChoosing:
    async def test_replicas_take_turns(self, cluster: Make) -> None:
        one = await cluster(3)
        for _ in range(6):
            await one.client.post("/v1/chat/completions", json=CHAT)
        engines = [server.server.engine for server in one.servers.values()]
        assert [engine.requests_served for engine in engines] == [2, 2, 2]  # type: ignore[attr-defined]

    async def test_the_first_request_starts_a_replica(self, cluster: Make) -> None:
        one = await cluster(
            0, model=config(deployment_config={"autoscaling_config": {"min_replicas": 0}})
        )
        assert one.model.state().state == "cold"
        assert (await one.client.get("/v1/models")).json()["data"][0]["state"] == "cold"
        assert one.obtained == 0
        assert (await one.client.post("/v1/chat/completions", json=CHAT)).status_code == 200
        assert len(one.servers) == 1
        assert one.model.state().state == "ready"
        assert one.model.card().context_length == 32768

    async def test_a_runtime_that_starts_none_is_not_waited_for_forever(
        self, cluster: Make
    ) -> None:
        one = await cluster(0, model=config(experimental_configs={"start_timeout_s": 1e-9}))
        never = asyncio.Event()

        async def wait() -> ReplicaInfo:
            await never.wait()
            raise AssertionError

        one.obtain = wait  # type: ignore[method-assign]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("penstock.serve.replicas.pool.START_GRACE_S", 0.01)
            with pytest.raises(EngineTimeoutError, match="no replica of 'm'"):
                await one.model.tokenize("x")

    async def test_loads_are_counted_and_given_back(self, cluster: Make) -> None:
        one = await cluster(2)
        streams = [
            one.model.chat(ChatRequest([{"role": "user", "content": "x"}])) for _ in range(4)
        ]
        for stream in streams:
            await anext(stream)
        assert [replica.running for replica in one.model.pool.current()] == [2, 2]
        assert one.model.state().running == 4
        for stream in streams:
            await stream.aclose()
        assert [replica.load for replica in one.model.pool.current()] == [0, 0]

    async def test_a_prompt_makes_blocks_that_depend_on_the_adapter(self, cluster: Make) -> None:
        one = await cluster(0)
        model = RemoteModel(config(), one, key=KEY)
        plain, other = model.pool.route(b"x" * 600), model.pool.route(b"x" * 600, adapter="a")
        assert len(plain.blocks) == len(other.blocks) == 2
        assert not set(plain.blocks) & set(other.blocks)
        assert one.model.pool.route(b"x" * 600) == RouteRequest()  # round robin reads none


class TestLosing:
    async def test_a_request_whose_replica_is_gone_goes_to_another(self, cluster: Make) -> None:
        one = await cluster(2)
        await one.kill("r0")
        for _ in range(4):
            assert (await one.client.post("/v1/chat/completions", json=CHAT)).status_code == 200
        assert one.obtained == 0

    async def test_where_all_are_gone_the_runtime_is_asked(self, cluster: Make) -> None:
        one = await cluster(1)
        await one.kill("r0")
        one.listed = ()
        assert (await one.client.post("/v1/chat/completions", json=CHAT)).status_code == 200
        assert one.obtained == 1

    async def test_a_request_without_a_token_survives_the_death_of_its_replica(
        self, cluster: Make
    ) -> None:
        one = await cluster(2, model=config(engine_kwargs={"time_to_first_token_ms": 100}))
        asking = [
            asyncio.create_task(one.client.post("/v1/chat/completions", json=CHAT))
            for _ in range(6)
        ]
        await until(lambda: sum(server.ongoing for server in one.servers.values()) == 6)
        await one.kill("r0")
        answers = await asyncio.gather(*asking)
        assert [answer.status_code for answer in answers] == [200] * 6

    @pytest.mark.parametrize(
        ("path", "end"),
        [
            ("/v1/chat/completions", "data: [DONE]\n\n"),
            ("/v1/messages", '"type":"overloaded_error"'),
            ("/v1/responses", '"code":"engine_dead"'),
        ],
    )
    async def test_a_stream_that_breaks_ends_with_an_error_event(
        self, cluster: Make, path: str, end: str
    ) -> None:
        one = await cluster(
            1, model=config(engine_kwargs={"time_per_token_ms": 5, "output_tokens": 30_000})
        )
        begun = asyncio.Event()
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)
            if message["type"] == "http.response.body":
                begun.set()

        body = {
            "model": "m",
            "stream": True,
            "max_tokens": 30_000,
            "messages": CHAT["messages"],
            "input": "hello",
        }
        body.pop("messages" if path == "/v1/responses" else "input")
        body["max_output_tokens" if path == "/v1/responses" else "max_tokens"] = body.pop(
            "max_tokens"
        )
        asked = asyncio.create_task(_call(one.app, path, body, send))
        await begun.wait()
        await one.kill("r0")
        await asked
        text = b"".join(message.get("body", b"") for message in sent).decode()
        assert sent[0]["status"] == 200
        assert not sent[-1]["more_body"]
        last = text.rstrip("\n").split("\n\n")
        assert "is gone" in last[-1] or "is gone" in last[-2]
        assert end in text
        assert all(event.startswith(("data: ", "event: ")) for event in last)

    async def test_a_request_that_ends_every_replica_is_given_up(self, cluster: Make) -> None:
        one = await cluster(4)
        for replica in list(one.servers):
            await one.kill(replica)
        with pytest.raises(EngineDeadError, match="3 replicas were lost"):
            await one.model.tokenize("x")

    async def test_a_replica_that_goes_down_is_left_for_another(self, cluster: Make) -> None:
        one = await cluster(2)
        one.servers["r0"]._http.app.ingress.draining = True
        for _ in range(4):
            assert (await one.client.post("/v1/chat/completions", json=CHAT)).status_code == 200
        assert one.servers["r1"].server.engine.requests_served == 4  # type: ignore[attr-defined]

    async def test_a_full_replica_is_left_for_another_and_the_last_one_tells(
        self, cluster: Make
    ) -> None:
        one = await cluster(2, model=config(deployment_config={"max_queued_requests": 0}))
        one.servers["r0"].server.admission.close()
        assert {
            (await one.client.post("/v1/chat/completions", json=CHAT)).status_code for _ in range(4)
        } == {200}
        one.servers["r1"].server.admission.close()
        refused = await one.client.post("/v1/chat/completions", json=CHAT)
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "overloaded"
        assert refused.headers["retry-after"] == "1"


class TestControl:
    async def test_every_replica_is_told_and_answers_for_itself(self, cluster: Make) -> None:
        one = await cluster(2)
        results = await one.model.control("pause", {})
        assert [(result["replica"], result["ok"]) for result in results] == [
            ("r0", True),
            ("r1", True),
        ]
        assert all(server.server.paused == "wait" for server in one.servers.values())
        assert one.model.state().state == "paused"
        await one.model.control("resume", {})
        assert one.model.state().state == "ready"

    async def test_a_replica_that_cannot_be_reached_is_reported_and_the_others_are_told(
        self, cluster: Make
    ) -> None:
        one = await cluster(2)
        await one.kill("r0")
        lost, told = await one.model.control("pause", {})
        assert (lost["ok"], lost["error"]["type"]) == (False, "unreachable")
        assert told["ok"]
        assert one.servers["r1"].server.paused == "wait"

    async def test_a_replica_that_starts_later_is_told(self, cluster: Make) -> None:
        one = await cluster(1)
        await one.model.control("sleep", {"level": 2})
        late = await one.add()
        assert late.server.asleep
        assert late.server.supervisor.phase == "cold"
        await one.model.control("wakeup", {})
        assert (await one.client.post("/v1/chat/completions", json=CHAT)).status_code == 200

    async def test_one_that_starts_asleep_knows_nothing_of_its_engine_yet(
        self, cluster: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Real(SimulatedEngine):
            """Has its capabilities from its start, as real ones do."""

            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, **kwargs)
                self._later = self.capabilities
                del self.capabilities

            def stated(self) -> Stated:
                return Stated()

            async def start(self) -> None:
                self.capabilities = self._later
                await super().start()

        monkeypatch.setattr("penstock.serve.models.server.engine_class", lambda name: Real)
        one = await cluster(0)
        await one.model.control("sleep", {})
        await one.add()
        assert one.desired.able == {}
        await one.model.control("wakeup", {})
        assert (await one.client.post("/v1/chat/completions", json=CHAT)).status_code == 200

    async def test_a_task_that_the_model_lacks_is_refused_before_there_is_a_replica(
        self, cluster: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Talks(SimulatedEngine):
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, **kwargs)
                able = self.capabilities
                self.capabilities = msgspec.structs.replace(able, tasks=frozenset({"chat"}))

        monkeypatch.setattr("penstock.serve.models.server.engine_class", lambda name: Talks)
        one = await cluster(0)
        for path in ("/pooling", "/v1/embeddings"):
            answer = await one.client.post(path, json={"model": "m", "input": "a"})
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unsupported")
        assert not one.model.pool.waiting

    async def test_a_store_that_keeps_nothing_harms_no_start(
        self, cluster: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def note(self: Any, digest: str, able: Capabilities) -> None:
            raise OSError("the store is full")

        monkeypatch.setattr(InMemoryStore, "note", note)
        one = await cluster(1)
        assert "could not be kept" in caplog.text
        assert (await one.client.post("/v1/chat/completions", json=CHAT)).status_code == 200

    async def test_a_replica_that_missed_a_call_catches_up(self, cluster: Make) -> None:
        one = await cluster(1)
        (server,) = one.servers.values()
        one.listed = ()
        await one.model.control("pause", {})
        assert server.server.paused is None
        await server.check_health()
        await until(lambda: server.server.paused == "wait")

    async def test_a_health_check_does_not_wait_for_requests_that_a_change_waits_for(
        self, cluster: Make
    ) -> None:
        one = await cluster(model=config(engine_kwargs={"output_tokens": 30_000}))
        (server,) = one.servers.values()
        stream = one.model.chat(ChatRequest([{"role": "user", "content": "x"}]))
        await anext(stream)
        await change_desired(one.desired, "sleep", {})
        await server.check_health()
        await until(lambda: server.server.state().state == "draining")
        await change_desired(one.desired, "wakeup", {})
        await server.check_health()
        await until(lambda: server.server.state().state == "ready")
        await anext(stream)
        await stream.aclose()

    async def test_a_change_that_fails_is_tried_again(
        self, cluster: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def fail(*_: Any) -> None:
            raise EngineError("once")

        one = await cluster(1)
        (server,) = one.servers.values()
        await change_desired(one.desired, "sleep", {})
        with monkeypatch.context() as patched:
            patched.setattr(server.server, "sleep", fail)
            await server.check_health()
            await until(lambda: "is not yet in the state" in caplog.text)
        await server.check_health()
        await until(lambda: server.server.state().state == "asleep")

    async def test_a_sleeping_model_without_replicas_is_not_started(self, cluster: Make) -> None:
        one = await cluster(0)
        assert await one.model.control("sleep", {}) == []
        refused = await one.client.post("/v1/chat/completions", json=CHAT)
        assert refused.status_code == 503
        assert one.obtained == 0
        with pytest.raises(UnavailableError):
            await one.model.tokenize("x")
        await one.model.control("wakeup", {})
        assert (await one.client.post("/v1/chat/completions", json=CHAT)).status_code == 200

    async def test_wrong_calls_are_refused_before_any_replica_hears_of_them(
        self, cluster: Make
    ) -> None:
        one = await cluster(1)
        with pytest.raises(RequestError, match="Did you mean 'pause'"):
            await one.model.control("pauze", {})
        with pytest.raises(RequestError, match="mode"):
            await one.model.control("pause", {"mode": "never"})
        with pytest.raises(UnsupportedError):
            await one.model.control("collective_rpc", {"method": "x"})

    async def test_threads_with_event_loops_of_their_own_may_call_while_requests_run(
        self, cluster: Make
    ) -> None:
        one = await cluster(
            2, model=config(engine_kwargs={"time_per_token_ms": 1, "output_tokens": 200})
        )
        stream = one.model.chat(
            ChatRequest(
                [{"role": "user", "content": "x"}], Sampling(max_tokens=200, ignore_eos=True)
            )
        )
        await anext(stream)
        results: list[Any] = []

        def call(number: int) -> None:
            method = "pause" if number % 2 else "resume"
            results.append(
                asyncio.run(one.model.control(method, {"mode": "keep"} if number % 2 else {}))
            )

        threads = [threading.Thread(target=call, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        await asyncio.gather(*(asyncio.to_thread(thread.join) for thread in threads))
        await one.model.control("resume", {})
        assert [all(part["ok"] for part in result) for result in results] == [True] * 8
        rest = [delta async for delta in stream]
        assert rest[-1].finish_reason == "length"

    async def test_what_several_operators_ask_for_at_once_is_all_kept(self, cluster: Make) -> None:
        one = await cluster(1)

        class Far(InMemoryStore):
            """Takes a moment, as a store elsewhere does."""

            async def load(self) -> DesiredState:
                await asyncio.sleep(0)
                return await super().load()

            async def save(self, state: DesiredState) -> bool:
                await asyncio.sleep(0)
                return await super().save(state)

        store = Far()
        first, second = (RemoteModel(config(), one, key=KEY, desired=store) for _ in range(2))
        await asyncio.gather(
            first.control("sleep", {}), second.control("pause", {}), first.control("sleep", {})
        )
        assert (store.state.version, store.state.asleep, store.state.paused) == (3, 1, "wait")


class TestCalls:
    """The handle's methods, which carry the neutral types."""

    async def test_generation(self, cluster: Make) -> None:
        one = await cluster()
        (server,) = one.servers.values()
        request = ChatRequest(
            [{"role": "user", "content": "hello"}], Sampling(temperature=0, seed=1), n=2
        )
        over_the_network = [delta async for delta in one.model.chat(request)]
        assert {delta.index for delta in over_the_network} == {0, 1}
        prompt = CompletionRequest("hello", Sampling(temperature=0, max_tokens=5))
        far = [delta async for delta in one.model.completions(prompt)]
        near = [delta async for delta in server.server.completions(prompt)]
        assert "".join(delta.text for delta in far) == "".join(delta.text for delta in near)
        assert far[-1].usage is not None
        assert far[-1].usage.completion_tokens == 5

    async def test_what_answers_once(self, cluster: Make) -> None:
        one = await cluster()
        assert await one.model.tokenize("hi") == [104, 105]
        assert await one.model.detokenize([104, 105]) == "hi"
        assert len((await one.model.embeddings(EmbeddingRequest(["a", "b"]))).vectors) == 2
        query = RerankRequest("a", ["b", "c"])
        assert await one.model.score(query) == await one.model.rerank(query)

    async def test_classes(self, cluster: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        one = await cluster()
        with pytest.raises(UnsupportedError, match="simulated"):
            await one.model.classify(ClassifyRequest(["a"]))
        answer = Classifications([Classification("glad", [0.25, 0.75])])

        async def classify(request: ClassifyRequest) -> Classifications:
            return answer

        engine = one.servers["r0"].server.engine
        monkeypatch.setattr(engine, "classify", classify)
        monkeypatch.setattr(engine, "capabilities", Capabilities(frozenset({"classify"}), 100, 4))
        assert await one.model.classify(ClassifyRequest(["a"])) == answer

    async def test_errors_keep_their_kind(self, cluster: Make) -> None:
        one = await cluster()
        with pytest.raises(RequestError, match="temperature"):
            await anext(
                one.model.chat(
                    ChatRequest([{"role": "user", "content": "x"}], Sampling(temperature=9))
                )
            )
        with pytest.raises(ModelNotFoundError):
            await anext(
                one.model.chat(ChatRequest([{"role": "user", "content": "x"}], adapter="none"))
            )

    async def test_an_engine_that_dies_in_a_stream_is_told_of(self, cluster: Make) -> None:
        one = await cluster(
            model=config(engine_kwargs={"time_per_token_ms": 1, "output_tokens": 1000})
        )
        (server,) = one.servers.values()
        stream = one.model.chat(ChatRequest([{"role": "user", "content": "x"}]))
        await anext(stream)
        await server.server.engine.stop()
        with pytest.raises(EngineDeadError):
            async for _ in stream:
                pass


class TestReplica:
    async def test_a_model_that_may_be_absent_may_fail(self, cluster: Make) -> None:
        broken = config(
            llm_engine="openvino",
            deployment_config={"autoscaling_config": {"min_replicas": 0, "max_replicas": 1}},
        )
        one = await cluster(1, model=broken)
        (server,) = one.servers.values()
        await server.check_health()
        refused = await one.client.post("/v1/chat/completions", json=CHAT)
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "engine_start_failed"
        assert one.model.state().state == "failed"
        assert "simulated" in one.model.state().reason

    async def test_a_dead_engine_is_started_again_by_the_health_check(self, cluster: Make) -> None:
        one = await cluster(1)
        (server,) = one.servers.values()
        await server.server.engine.stop()
        await server.check_health()
        assert (await one.client.post("/v1/chat/completions", json=CHAT)).status_code == 200


async def _call(app: Any, path: str, body: dict[str, Any], send: Any) -> None:
    import json

    content = json.dumps(body).encode()
    messages = [{"type": "http.request", "body": content, "more_body": False}]
    forever = asyncio.Event()

    async def receive() -> Any:
        if messages:
            return messages.pop()
        await forever.wait()

    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
    }
    await app(scope, receive, send)
