"""What a server lets strangers do: slow clients, web pages, holders of a user's key, probes."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

import httpx
import pytest
import uvicorn
from uvicorn.server import ServerState

from penstock.engines.simulated.engine import SimulatedEngine
from penstock.errors import EngineStartError, RequestError
from penstock.llm_config import LLMConfig
from penstock.serve.api.endpoints import control
from penstock.serve.api.routes import CONTROL_ENDPOINTS, ENDPOINTS, Endpoint
from penstock.serve.config.settings import Limits
from penstock.serve.http_server import HttpConnection
from penstock.serve.models.handle import ModelState
from penstock.serve.models.local import build_local_handles
from penstock.serve.replicas.replica import ENDPOINTS as REPLICA_ENDPOINTS

CHAT = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}
BODY = json.dumps(CHAT).encode()
HEAD = (
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
)
ONE_AT_A_TIME = {
    "model_loading_config": {"model_id": "sim", "model_source": "simulated"},
    "llm_engine": "simulated",
    "engine_kwargs": {"time_per_token_ms": 0, "max_num_seqs": 1},
    "deployment_config": {"max_ongoing_requests": 1},
}


class Raw:
    """A client that sends what bytes it likes."""

    def __init__(self, url: str, *, buffer: int | None = None) -> None:
        host, _, port = url.removeprefix("http://").rpartition(":")
        self.socket = socket.socket()
        self.socket.settimeout(20)
        if buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        self.socket.connect((host, int(port)))

    def send(self, data: bytes) -> Raw:
        self.socket.sendall(data)
        return self

    def rest(self) -> bytes:
        """All that comes until the server closes the connection."""
        got = b""
        while part := self.socket.recv(65536):
            got += part
        self.socket.close()
        return got

    def send_all_but(self, missing: int) -> Raw:
        return self.send(
            HEAD + b"content-length: %d\r\n\r\n" % len(BODY) + BODY[: len(BODY) - missing]
        )


@pytest.fixture
def serve(running: Callable[..., str], served: Any, handle: Any) -> Callable[..., str]:
    """The URL of a served model "sim" with these limits."""

    def start(**limits: Any) -> str:
        return running(lambda: served(handle("sim", SimulatedEngine()), limits=Limits(**limits)))

    return start


class TestSlowClients:
    def test_unfinished_bodies_take_nobodys_place(self, serve: Any) -> None:
        url = serve(max_inflight=2)
        stalled = [Raw(url).send_all_but(1) for _ in range(8)]
        for _ in range(3):
            assert httpx.post(f"{url}/v1/chat/completions", json=CHAT).status_code == 200
        assert (
            b"200 OK"
            in stalled[0]
            .send(BODY[-1:] + HEAD + b"connection: close\r\ncontent-length: 0\r\n\r\n")
            .rest()
        )
        for one in stalled[1:]:
            one.socket.close()

    def test_a_body_that_does_not_come_is_given_up(self, serve: Any) -> None:
        answer = Raw(serve(body_timeout_s=0.05)).send_all_but(1).rest()
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 408 ")
        error = json.loads(body)["error"]
        assert (error["type"], error["code"]) == ("invalid_request_error", "request_timeout")
        assert error["message"] == f"the request body came too slowly: {len(BODY) - 1} bytes so far"

    @pytest.mark.parametrize("sent", [b"", b"POST /v1/chat", HEAD, HEAD + b"x-more: 1"])
    def test_a_head_that_does_not_come_is_given_up(self, serve: Any, sent: bytes) -> None:
        answer = Raw(serve(head_timeout_s=0.05)).send(sent).rest()
        assert answer.startswith(b"HTTP/1.1 408 ") == bool(sent)

    def test_the_head_of_a_second_request_is_given_up_too(self, serve: Any) -> None:
        client = Raw(serve(head_timeout_s=0.05))
        client.send(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert client.socket.recv(65536).startswith(b"HTTP/1.1 200 ")
        assert b"HTTP/1.1 408 " in client.send(HEAD).rest()

    def test_a_request_of_two_lengths_is_refused_and_ends_the_connection(self, serve: Any) -> None:
        second = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"
        head = HEAD + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n"
        answer = Raw(serve()).send(head + b"0\r\n\r\n" + second).rest()
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert answer.count(b"HTTP/1.1 ") == 1
        assert b"connection: close" in answer

    def test_many_unfinished_heads_end_and_harm_nobody(self, serve: Any) -> None:
        url = serve(head_timeout_s=0.2)
        stalled = [Raw(url).send(b"GET /health HTTP/1.1\r\nx-a: ") for _ in range(100)]
        assert httpx.get(f"{url}/health").status_code == 200
        assert all(one.rest().startswith(b"HTTP/1.1 408 ") for one in stalled)

    def test_an_answer_that_nobody_reads_gives_its_slot_back(
        self, running: Any, served: Any, caplog: Any
    ) -> None:
        def make() -> Any:
            (model,) = build_local_handles([LLMConfig.from_dict(ONE_AT_A_TIME)]).values()
            return served(model, limits=Limits(write_timeout_s=0.05))

        url = running(make)
        with caplog.at_level(logging.INFO, "penstock.serve"):
            client = Raw(url, buffer=4096)
            body = json.dumps({**CHAT, "stream": True, "max_tokens": 30_000, "ignore_eos": True})
            client.send(HEAD + b"content-length: %d\r\n\r\n" % len(body) + body.encode())
            assert client.socket.recv(64).startswith(b"HTTP/1.1 200 ")
            assert httpx.post(f"{url}/v1/chat/completions", json=CHAT).status_code == 200
        assert "a client read nothing for 0.05 s" in caplog.text
        client.socket.close()

    def test_a_client_that_is_slow_but_reads_keeps_its_answer(self) -> None:
        transport, loop = Mock(), Mock()
        connection = HttpConnection(
            uvicorn.Config(Mock(), log_config=None),
            ServerState(),
            {},
            loop,
            limits=Limits(write_timeout_s=60),
        )
        connection.transport, connection.flow = transport, Mock()
        ours, theirs = socket.socketpair()
        transport.get_extra_info.return_value = ours
        unsent = transport.get_write_buffer_size

        def timeout(size: int) -> None:
            """It goes off while so many bytes are unsent."""
            delay, look = loop.call_later.call_args.args
            assert delay == 60
            unsent.return_value = size
            look()

        unsent.return_value = 100_000
        connection.pause_writing()
        timeout(99_000)
        timeout(98_999)
        assert not transport.abort.called
        ours.send(b"held by the kernel")
        ours.send(b"as well")
        timeout(90_000)
        theirs.recv(18)
        timeout(90_000)
        assert not transport.abort.called
        connection.resume_writing()
        loop.call_later.return_value.cancel.assert_called_once_with()
        unsent.return_value = 100_000
        connection.pause_writing()
        timeout(99_000)
        timeout(99_000)
        transport.abort.assert_called_once_with()
        ours.close()
        theirs.close()

    def test_what_follows_a_refused_request_is_not_read_for_ever(self, serve: Any) -> None:
        client = Raw(serve(head_timeout_s=0.05, max_body_bytes=10))
        client.send(HEAD + b"content-length: 1000\r\n\r\n{")
        assert client.socket.recv(65536).startswith(b"HTTP/1.1 413 ")
        client.send(b"still coming").rest()

    async def test_a_request_counts_until_it_is_answered(
        self, served: Any, handle: Any, scripted: Any, until: Any
    ) -> None:
        engine = scripted(["x"])
        await engine.start()
        site = served(handle("m", engine), limits=Limits(max_inflight=1))
        engine.hold.clear()
        async with site.client() as client:
            first = asyncio.create_task(client.post("/v1/chat/completions", json=CHAT))
            await until(lambda: bool(engine.prompts))
            assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 429
            engine.hold.set()
            assert (await first).status_code == 200
            assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200
        assert site.ingress.answering == 0


class TestReady:
    @pytest.mark.parametrize(
        ("state", "status"),
        [
            (ModelState("ready"), 200),
            (ModelState("cold", on_demand=True), 200),
            (ModelState("loading", on_demand=True), 200),
            (ModelState("cold"), 503),
            (ModelState("loading"), 503),
            (ModelState("asleep", on_demand=True), 503),
            (ModelState("paused"), 503),
            (ModelState("draining"), 503),
            (ModelState("failed", "no such file", on_demand=True), 503),
        ],
    )
    async def test_by_state(
        self, served: Any, untouchable: Any, state: ModelState, status: int
    ) -> None:
        async with served(untouchable("m", state)).client() as client:
            for query in ("", "?model=m"):
                answer = await client.get(f"/ready{query}")
                assert answer.status_code == status
                assert ("retry-after" in answer.headers) == (status == 503)

    async def test_one_model_is_enough_and_each_can_be_asked_for(
        self, served: Any, untouchable: Any
    ) -> None:
        site = served(
            untouchable("up", ModelState("ready")), untouchable("down", ModelState("failed", "why"))
        )
        async with site.client() as client:
            assert (await client.get("/ready")).json() == {"status": "ready"}
            assert (await client.get("/ready?model=up")).status_code == 200
            down = await client.get("/ready?model=down")
            assert (down.status_code, down.json()["error"]["message"]) == (503, "'down' is failed")
            assert (await client.get("/ready?model=dwon")).status_code == 404

    async def test_not_while_draining_and_without_a_key(
        self, served: Any, untouchable: Any
    ) -> None:
        site = served(untouchable("m", ModelState("ready")), api_keys=frozenset({"k"}))
        async with site.client() as client:
            assert (await client.get("/ready")).status_code == 200
            site.ingress.draining = True
            assert (await client.get("/ready")).status_code == 503


class TestAdminRoutes:
    @pytest.mark.parametrize(
        "endpoint",
        [one for one in (*CONTROL_ENDPOINTS, *REPLICA_ENDPOINTS, *ENDPOINTS) if one.admin],
    )
    async def test_a_users_key_controls_nothing(
        self, served: Any, untouchable: Any, endpoint: Endpoint
    ) -> None:
        from penstock.serve.api.ingress import IngressApp

        model = untouchable("m", ModelState("ready"))
        site = served(model, api_keys=frozenset({"user"}), admin_keys=frozenset({"boss"}), dev=True)
        site.app = IngressApp(site.ingress, REPLICA_ENDPOINTS)
        async with site.client() as client:
            for key, status in (("user", 403), ("else", 401), ("", 401)):
                headers = {"authorization": f"Bearer {key}"} if key else {}
                answer = await client.request(endpoint.method, endpoint.path, headers=headers)
                assert answer.status_code == status
            for path in (f"{endpoint.path}/", f"/{endpoint.path}", endpoint.path.upper()):
                answer = await client.request(
                    endpoint.method, path, headers={"authorization": "Bearer user"}
                )
                assert answer.status_code == 404
        assert not model.calls

    def test_what_controls_a_model_is_for_admins(self) -> None:
        every = (*CONTROL_ENDPOINTS, *REPLICA_ENDPOINTS, *ENDPOINTS)
        assert {one.path for one in every if one.admin} == {
            *(
                "/sleep",
                "/wakeup",
                "/is_sleeping",
                "/pause",
                "/resume",
                "/is_paused",
                "/reset_prefix_cache",
                "/load_model",
                "/unload_model",
            ),
            *("/start_profile", "/stop_profile", "/collective_rpc", "/penstock/control"),
            *("/wake_up", "/server_info", "/v1/load_lora_adapter", "/v1/unload_lora_adapter"),
        }
        for answer in (control.act("new"), control.ask("new"), control.act_here):
            with pytest.raises(ValueError, match="admin=True"):
                Endpoint("POST", "/new", answer)
            with pytest.raises(ValueError, match="public"):
                Endpoint("POST", "/new", answer, admin=True, public=True)


FOREIGN = [
    {"host": "evil.example"},
    {"host": "evil.example:8000"},
    {"host": "127.0.0.1.evil.example"},
]
OWN = [
    {},
    {"host": "localhost:1"},
    {"host": "127.0.0.1"},
    {"host": "[::1]:8000"},
    {"host": "a.localhost"},
    {"host": f"{socket.gethostname().upper()}:8000"},
    {"host": "10.0.0.5:8443"},
]


class TestWebPages:
    """A web page in a browser on this machine, and a server without keys."""

    async def ask(
        self, client: Any, headers: dict[str, str], path: str = "/v1/chat/completions"
    ) -> int:
        given = {"host": "localhost:8000", "content-type": "application/json", **headers}
        return int((await client.post(path, content=BODY, headers=given)).status_code)

    @pytest.fixture(params=["127.0.0.1", "::1", "::ffff:127.0.0.1"])
    async def client(self, ingress: Any, request: Any) -> Any:
        transport = httpx.ASGITransport(app=self.over_loopback(ingress.app, request.param))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost:8000") as made:
            yield made

    def over_loopback(self, app: Any, address: str = "127.0.0.1") -> Any:
        async def wrapped(scope: Any, receive: Any, send: Any) -> None:
            await app({**scope, "server": (address, 8000)}, receive, send)

        return wrapped

    async def test_a_foreign_name_is_refused(self, client: Any) -> None:
        assert [await self.ask(client, headers) for headers in FOREIGN] == [403] * len(FOREIGN)
        assert [await self.ask(client, headers) for headers in OWN] == [200] * len(OWN)

    async def test_a_foreign_name_reads_nothing(self, client: Any) -> None:
        """After DNS rebinding the page has the server's origin, so it could read each answer."""
        for path, foreign, own in (
            ("/v1/models", 403, 200),
            ("/metrics", 403, 200),
            ("/v1/files", 403, 404),
        ):
            assert (await client.get(path, headers=FOREIGN[0])).status_code == foreign
            assert (await client.head(path, headers=FOREIGN[0])).status_code == foreign
            assert (await client.get(path, headers=OWN[1])).status_code == own
        assert (await client.get("/health", headers=FOREIGN[0])).status_code == 200
        other = {**OWN[1], "origin": "https://evil.example"}
        assert (await client.get("/v1/models", headers=other)).status_code == 200

    async def test_a_foreign_page_is_refused(self, client: Any) -> None:
        for origin in (
            "https://evil.example",
            "null",
            "http://localhost:3000",
            "http://localhost:8000.evil.example",
        ):
            for path in ("/v1/chat/completions", "/v1/audio/transcriptions", "/tokenize"):
                assert await self.ask(client, {"origin": origin}, path) == 403
        assert await self.ask(client, {"origin": "http://localhost:8000"}) == 200

    async def test_a_body_that_a_page_may_send_without_asking_is_refused(self, client: Any) -> None:
        for kind in (
            "text/plain",
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=x",
            "",
        ):
            assert await self.ask(client, {"content-type": kind}) == 415

    async def test_an_operator_may_let_others_in(
        self, served: Any, handle: Any, ingress: Any
    ) -> None:
        (model,) = ingress.handles.values()
        site = served(model, allowed_hosts=("Box.Example",), cors_origins=("https://ui.example",))
        transport = httpx.ASGITransport(app=self.over_loopback(site.app))
        async with httpx.AsyncClient(
            transport=transport, base_url="http://localhost:8000"
        ) as client:
            assert await self.ask(client, {"host": "box.example:1"}) == 200
            assert await self.ask(client, {"host": "other.example"}) == 403
            assert await self.ask(client, {"origin": "https://ui.example"}) == 200
            assert await self.ask(client, {"origin": "https://other.example"}) == 403
        site = served(model, api_keys=frozenset({"k"}))
        transport = httpx.ASGITransport(app=self.over_loopback(site.app))
        async with httpx.AsyncClient(
            transport=transport, base_url="http://localhost:8000"
        ) as client:
            keyed = {
                "authorization": "Bearer k",
                "host": "box.example",
                "origin": "https://ui.example",
            }
            assert await self.ask(client, keyed) == 200

    async def test_reached_from_outside_it_may_have_any_name(self, ingress: Any) -> None:
        async def outside(scope: Any, receive: Any, send: Any) -> None:
            await ingress.app({**scope, "server": ("10.0.0.5", 8000)}, receive, send)

        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app=outside), base_url="http://box:8000"
        ) as client:
            assert await self.ask(client, {"host": "box:8000"}) == 200
            assert await self.ask(client, {"host": "box:8000", "origin": "http://box:8000"}) == 200
            assert (
                await self.ask(client, {"host": "box:8000", "origin": "https://evil.example"})
                == 403
            )


class TestPaths:
    """Where files are on this machine is told to who runs it, and to nobody else."""

    async def answers(self, site: Any, key: str) -> list[str]:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        texts = []
        async with site.client(headers=headers) as client:
            for path in ("/v1/chat/completions", "/v1/messages", "/v1/responses"):
                for stream in (False, True):
                    body = {**CHAT, "input": "x", "stream": stream}
                    known = (
                        {"messages", "max_tokens", "stream"}
                        if path != "/v1/responses"
                        else {"input", "stream"}
                    )
                    answer = await client.post(
                        path, json={k: v for k, v in body.items() if k in known}
                    )
                    assert answer.status_code == 503
                    texts.append(answer.text)
            texts.append((await client.get("/v1/models")).text)
        return texts

    async def test_only_who_runs_the_server_sees_paths(
        self, served: Any, untouchable: Any, tmp_path: Any
    ) -> None:
        where = f"{tmp_path}/secret place/model.gguf"
        model = untouchable("m", ModelState("failed", f"'{where}' could not be loaded"))

        async def chat(request: Any) -> Any:
            raise EngineStartError(
                f"'{where}' could not be loaded (see {tmp_path}/log.txt, /docs and http://a/b/c)"
            )
            yield

        model.chat = chat
        keys = {"api_keys": frozenset({"user"}), "admin_keys": frozenset({"boss"})}
        for text in await self.answers(served(model, **keys), "user"):
            assert str(tmp_path) not in text
            assert "secret" not in text
            assert "'model.gguf' could not be loaded" in text
        for site, key in ((served(model, **keys), "boss"), (served(model), "")):
            assert all(where in text for text in await self.answers(site, key))

    async def test_a_stream_that_breaks_tells_no_path(
        self, served: Any, handle: Any, scripted: Any
    ) -> None:
        engine = scripted(["a", "b"])

        async def chat(request: Any) -> Any:
            from penstock.types import Delta

            yield Delta(text="a")
            raise RequestError("the file '/tmp/inside/cache.bin' is damaged")

        site = served(handle("m", engine), api_keys=frozenset({"user"}))
        site.handles["m"].chat = chat
        async with site.client(headers={"authorization": "Bearer user"}) as client:
            text = (await client.post("/v1/chat/completions", json={**CHAT, "stream": True})).text
        assert "the file 'cache.bin' is damaged" in text
        assert "inside" not in text


CHUNKED = b"transfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize("sent", [b"hm\r\n\r\n", HEAD + CHUNKED + b"zz\r\n"])
def test_what_is_no_http_is_a_400_in_the_shape_of_all(
    serve: Callable[..., str], sent: bytes
) -> None:
    head, _, body = Raw(serve()).send(sent).rest().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert json.loads(body)["error"]["message"].endswith("no valid HTTP request")


def test_a_body_that_breaks_behind_its_answer_ends_the_connection_quietly(
    serve: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    client = Raw(serve()).send(HEAD.replace(b"chat", b"chart") + CHUNKED)
    got = b""
    while not got.endswith(b"}}"):
        got += client.socket.recv(65536)
    assert client.send(b"zz\r\n").rest() == b""
    assert [one for one in caplog.records if one.name == "asyncio"] == []


async def test_a_path_cannot_forge_a_line_of_the_log(
    ingress: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "penstock.access")
    async with ingress.client() as client:
        await client.get("/v1/models/a%0A12:00:00%20INFO%20POST%20/sleep%20200%1b[2J")
    (line,) = [one.getMessage() for one in caplog.records if one.name == "penstock.access"]
    assert line == r"GET /v1/models/a\n12:00:00 INFO POST /sleep 200\x1b[2J 404"


async def test_who_has_no_key_learns_no_name_of_a_model(ingress: Any, served: Any) -> None:
    (model,) = ingress.handles.values()
    for name in (model.model_id + "x", f"{model.model_id}:adapter", "adapter"):
        async with served(model, api_keys=frozenset({"k"})).client() as client:
            refused = await client.get("/ready", params={"model": name})
            told = await client.get(
                "/ready", params={"model": name}, headers={"authorization": "Bearer k"}
            )
        assert refused.json()["error"]["message"] == "there is no such model"
        assert (refused.status_code, told.status_code) == (404, 404)
        assert model.model_id in told.json()["error"]["message"]
