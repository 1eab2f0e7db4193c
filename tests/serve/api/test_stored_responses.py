"""Stored responses, conversations and background responses over HTTP."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from penstock.openai.responses_api import ResponseBody
from penstock.serve.api import background
from penstock.serve.config.settings import StoreSettings

PIECES = ["Hel", "lo", "!"]
Until = Callable[[Callable[[], bool]], Awaitable[None]]


class Stored:
    """A scripted engine behind an ingress with a store, and a client."""

    def __init__(self, engine: Any, ingress: Any) -> None:
        self.engine = engine
        self.ingress = ingress
        self.client: httpx.AsyncClient = ingress.client()

    async def create(self, input: Any = "hi", **more: Any) -> httpx.Response:
        return await self.client.post("/v1/responses", json={"model": "m", "input": input, **more})

    async def get(self, id: str, **query: Any) -> httpx.Response:
        return await self.client.get(f"/v1/responses/{id}", params=query)

    async def ended(self, id: str) -> dict[str, Any]:
        while (body := (await self.get(id)).json())["status"] in ("queued", "in_progress"):
            pass
        return body


@pytest.fixture
async def make(
    served: Any, handle: Any, scripted: Any, tmp_path: Path
) -> AsyncGenerator[Callable[..., Awaitable[Stored]], None]:
    made: list[Stored] = []

    async def start(pieces: list[str] | None = None, **settings: Any) -> Stored:
        limits = settings.pop("limits_of_store", {})
        store = StoreSettings(path=str(tmp_path / "store.db"), **limits)
        engine = scripted(pieces or PIECES)
        one = handle("m", engine)
        await one.start()
        made.append(Stored(engine, served(one, store=store, **settings)))
        return made[-1]

    yield start
    for one in made:
        await one.client.aclose()
        await one.ingress.ingress.drain(0.0)
        await one.ingress.handles["m"].stop()


@pytest.fixture
async def stored(make: Callable[..., Awaitable[Stored]]) -> Stored:
    return await make()


@pytest.mark.parametrize(
    "more",
    [
        {"previous_response_id": "resp_1"},
        {"previous_response_id": ""},
        {"conversation": "conv_1"},
        {"background": True},
    ],
)
async def test_without_a_store_it_is_said_how_to_switch_it_on(
    client: httpx.AsyncClient, more: dict[str, Any]
) -> None:
    refused = await client.post("/v1/responses", json={"model": "sim", "input": "a", **more})
    error = refused.json()["error"]
    assert (refused.status_code, error["param"]) == (400, next(iter(more)))
    assert "penstock serve --store FILE" in error["message"]


async def test_without_a_store_the_response_says_that_it_is_not_stored(
    client: httpx.AsyncClient,
) -> None:
    more = {"store": True, "background": False, "previous_response_id": None}
    answer = await client.post("/v1/responses", json={"model": "sim", "input": "a", **more})
    assert (answer.status_code, answer.json()["store"]) == (200, False)
    for method, path in (
        ("GET", "/v1/responses/resp_1"),
        ("DELETE", "/v1/responses/resp_1"),
        ("POST", "/v1/responses/resp_1/cancel"),
        ("GET", "/v1/responses/resp_1/input_items"),
        ("GET", "/v1/conversations/conv_1"),
        ("GET", "/v1/conversations/conv_1/items"),
    ):
        refused = await client.request(method, path)
        assert refused.status_code == 400
        assert "--store FILE" in refused.json()["error"]["message"]


async def test_a_response_is_found_again_and_deleted(stored: Stored) -> None:
    made = (await stored.create(metadata={"a": "b"})).json()
    assert made["store"] is True
    assert (await stored.get(made["id"])).json() == made
    items = (await stored.client.get(f"/v1/responses/{made['id']}/input_items")).json()
    assert [item["content"] for item in items["data"]] == [[{"type": "input_text", "text": "hi"}]]
    gone = await stored.client.delete(f"/v1/responses/{made['id']}")
    assert gone.json() == {"id": made["id"], "object": "response", "deleted": True}
    missing = await stored.get(made["id"])
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_stored")


async def test_store_false_is_not_stored(stored: Stored) -> None:
    made = (await stored.create(store=False)).json()
    assert made["store"] is False
    assert (await stored.get(made["id"])).status_code == 404


@pytest.mark.parametrize("stream", [False, True])
async def test_a_response_continues_another(
    stored: Stored, stream: bool, events: Callable[[str], list[str]]
) -> None:
    first = (await stored.create("one", instructions="Obey.")).json()
    answer = await stored.create("two", previous_response_id=first["id"], stream=stream)
    second = json.loads(events(answer.text)[-1])["response"] if stream else answer.json()
    assert second["previous_response_id"] == first["id"]
    # Instructions are those of one response.
    assert stored.engine.prompts == ["Obey.one", "oneHello!two"]
    assert (await stored.get(second["id"])).json() == second
    third = await stored.create("three", previous_response_id=second["id"])
    assert third.status_code == 200
    assert stored.engine.prompts[-1] == "oneHello!twoHello!three"


async def test_ids_do_not_come_from_the_client(stored: Stored) -> None:
    body, headers = {"model": "m", "input": "a"}, {"x-request-id": "same"}
    made = [await stored.client.post("/v1/responses", json=body, headers=headers) for _ in "ab"]
    assert len({one.json()["id"] for one in made}) == 2


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"previous_response_id": ""}, "previous_response_id"),
        ({"conversation": {}}, "conversation"),
        ({"metadata": {"a": "b" * 513}}, "metadata"),
        ({"conversation": {"name": "a"}}, "conversation.name"),
        ({"previous_response_id": "resp_1", "conversation": "conv_1"}, "previous_response_id"),
        ({"background": True, "store": False}, "background"),
        ({"background": True, "input": [{"type": "massage"}]}, "input[0]"),
        ({"background": True, "model": "other"}, "model"),
    ],
)
async def test_what_cannot_be_is_refused(stored: Stored, more: Any, param: str) -> None:
    refused = await stored.create(**more)
    assert refused.status_code in (400, 404)
    assert refused.json()["error"]["param"] == param


async def test_an_error_names_an_item_by_its_place_in_the_request(stored: Stored) -> None:
    first = (await stored.create()).json()
    refused = await stored.create([{"type": "massage"}], previous_response_id=first["id"])
    assert refused.json()["error"]["param"] == "input[0]"


async def test_a_failed_stream_is_kept_as_failed(
    stored: Stored, events: Callable[[str], list[str]]
) -> None:
    stored.engine.fail_after = 1
    answer = await stored.create(stream=True)
    failed = json.loads(events(answer.text)[-1])["response"]
    assert (await stored.get(failed["id"])).json()["status"] == "failed"
    refused = await stored.create(previous_response_id=failed["id"])
    assert refused.json()["error"]["param"] == "previous_response_id"


async def test_a_caller_sees_its_own_only(make: Callable[..., Awaitable[Stored]]) -> None:
    stored = await make(api_keys=frozenset({"k1", "k2"}))
    stored.client.headers["authorization"] = "Bearer k1"
    made = (await stored.create()).json()
    conversation = (await stored.client.post("/v1/conversations", json={})).json()
    stored.client.headers["authorization"] = "Bearer k2"
    for path in (f"/v1/responses/{made['id']}", f"/v1/conversations/{conversation['id']}"):
        assert (await stored.client.get(path)).status_code == 404
        assert (await stored.client.delete(path)).status_code == 404
    assert (await stored.create(previous_response_id=made["id"])).status_code == 404
    assert (await stored.create(conversation=conversation["id"])).status_code == 404
    stored.client.headers["authorization"] = "Bearer k1"
    assert (await stored.get(made["id"])).json() == made


async def test_a_response_in_the_background(
    stored: Stored, until: Until, events: Callable[[str], list[str]]
) -> None:
    stored.engine.hold.clear()
    queued = (await stored.create(background=True)).json()
    assert (queued["status"], queued["background"], queued["output"]) == ("queued", True, [])
    await until(lambda: bool(stored.engine.prompts))
    assert (await stored.get(queued["id"])).json()["status"] == "queued"
    stored.engine.hold.set()
    done = await stored.ended(queued["id"])
    assert (done["status"], done["output"][0]["content"][0]["text"]) == ("completed", "Hello!")
    replayed = await stored.get(queued["id"], stream="true")
    assert replayed.headers["content-type"].startswith("text/event-stream")
    every = [json.loads(one) for one in events(replayed.text)]
    assert (every[0]["type"], every[-1]["response"]) == ("response.created", done)
    after = await stored.get(queued["id"], stream="true", starting_after="4")
    later = [json.loads(one) for one in events(after.text)]
    assert later == [one for one in every if one["sequence_number"] > 4]
    following = await stored.create(previous_response_id=queued["id"])
    assert following.status_code == 200
    metrics = (await stored.client.get("/metrics")).text
    for endpoint, times in (("/v1/responses", "2.0"), ("/v1/responses (background)", "1.0")):
        assert f'{{endpoint="{endpoint}",model_name="m",status="200"}} {times}' in metrics


async def test_a_stream_of_a_background_response_follows_it(
    stored: Stored, until: Until, events: Callable[[str], list[str]]
) -> None:
    stored.engine.hold.clear()
    streams = [asyncio.create_task(stored.create(background=True, stream=True))]
    await until(lambda: bool(stored.engine.prompts))
    (id,) = stored.ingress.ingress.background._runs
    streams.append(asyncio.create_task(stored.get(id, stream="true")))
    stored.engine.hold.set()
    texts = [(await stream).text for stream in streams]
    assert texts[0] == texts[1]
    assert json.loads(events(texts[0])[-1])["response"]["id"] == id


async def test_cancelling_ends_the_engines_request(stored: Stored, until: Until) -> None:
    stored.engine.hold.clear()
    queued = (await stored.create(background=True)).json()
    await until(lambda: bool(stored.engine.prompts))
    cancelled = await stored.client.post(f"/v1/responses/{queued['id']}/cancel")
    assert cancelled.json()["status"] == "cancelled"
    await until(lambda: not stored.ingress.ingress.inflight)
    assert (await stored.get(queued["id"])).json()["status"] == "cancelled"
    other = (await stored.create(background=True)).json()
    await stored.client.delete(f"/v1/responses/{other['id']}")
    await until(lambda: not stored.ingress.ingress.inflight)
    assert (await stored.get(other["id"])).status_code == 404


async def test_another_ingress_of_the_store_can_cancel_and_follow(
    make: Callable[..., Awaitable[Stored]], until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "POLL_S", 0.0)
    stored, other = await make(), await make()
    stored.engine.hold.clear()
    first, second = [(await stored.create(background=True)).json()["id"] for _ in "ab"]
    following = asyncio.create_task(other.get(first, stream="true"))
    assert (await other.client.post(f"/v1/responses/{second}/cancel")).status_code == 200
    await until(lambda: list(stored.ingress.ingress.background._runs) == [first])
    stored.engine.hold.set()
    assert "response.completed" in (await following).text


async def test_background_failures_are_kept(stored: Stored) -> None:
    stored.engine.fail_after = 1
    broken = await stored.ended((await stored.create(background=True)).json()["id"])
    assert broken["status"] == "failed"
    assert broken["error"]["message"] == "the engine broke"
    stored.engine.fail_after = 0  # before the stream begins
    refused = await stored.ended((await stored.create(background=True)).json()["id"])
    assert refused["status"] == "failed"
    assert refused["error"] == {"code": "server_error", "message": "the engine broke"}


async def test_background_responses_are_bounded(make: Callable[..., Awaitable[Stored]]) -> None:
    stored = await make(limits_of_store={"max_background": 1})
    stored.engine.hold.clear()
    first = await stored.create(background=True)
    second = await stored.create(background=True)
    assert (first.status_code, second.status_code) == (200, 429)


async def test_a_background_response_counts_as_one_in_flight(
    make: Callable[..., Awaitable[Stored]], until: Until
) -> None:
    from penstock.serve.config.settings import Limits

    stored = await make(limits=Limits(max_inflight=1))
    stored.engine.hold.clear()
    await stored.create(background=True)
    assert (await stored.create()).status_code == 429
    stored.engine.hold.set()
    await until(lambda: not stored.ingress.ingress.answering)
    assert (await stored.create()).status_code == 200


async def test_a_background_response_that_cannot_begin_leaves_its_place(
    make: Callable[..., Awaitable[Stored]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from penstock.errors import UnavailableError
    from penstock.serve.config.settings import Limits

    stored = await make(limits=Limits(max_inflight=1))
    models = stored.ingress.ingress.models
    find, asked = models.find, []

    async def find_once(name: str) -> Any:
        asked.append(name)
        if len(asked) == 2:
            raise UnavailableError("the adapters cannot be listed")
        return await find(name)

    monkeypatch.setattr(models, "find", find_once)
    assert (await stored.create(background=True)).status_code == 503
    assert stored.ingress.ingress.answering == 0
    assert (await stored.create()).status_code == 200


async def test_a_shutdown_ends_background_responses_as_failed(
    make: Callable[..., Awaitable[Stored]],
) -> None:
    stored = await make()
    stored.engine.hold.clear()
    id = (await stored.create(background=True)).json()["id"]
    await stored.ingress.ingress.drain(0.0)
    later = await make()
    failed = (await later.get(id)).json()
    assert failed["status"] == "failed"
    assert "shutting down" in failed["error"]["message"]


async def test_conversations(stored: Stored) -> None:
    client = stored.client
    item = {"role": "user", "content": "zero"}
    made = (await client.post("/v1/conversations", json={"items": [item]})).json()
    path = f"/v1/conversations/{made['id']}"
    assert (made["object"], made["metadata"]) == ("conversation", {})
    one = (await stored.create("one", conversation=made["id"])).json()
    assert one["conversation"] == {"id": made["id"]}
    await stored.create("two", conversation={"id": made["id"]}, store=False, stream=True)
    assert stored.engine.prompts == ["zeroone", "zerooneHello!two"]
    page = (await client.get(f"{path}/items", params={"limit": 3})).json()
    texts = [item["content"][0]["text"] for item in page["data"]]
    assert (texts, page["has_more"]) == (["Hello!", "two", "Hello!"], True)
    rest = (await client.get(f"{path}/items", params={"after": page["last_id"]})).json()
    assert [item["content"][0]["text"] for item in rest["data"]] == ["one", "zero"]
    assert rest["has_more"] is False
    added = (await client.post(f"{path}/items", json={"items": [item, item]})).json()
    first = f"{path}/items/{added['first_id']}"
    assert (await client.get(first)).json() == added["data"][0]
    assert (await client.delete(first)).json()["id"] == made["id"]
    assert (await client.get(first)).status_code == 404
    changed = await client.post(path, json={"metadata": {"a": "b"}})
    assert changed.json() == (await client.get(path)).json()
    assert changed.json()["metadata"] == {"a": "b"}
    assert (await client.delete(path)).json()["deleted"] is True
    assert (await client.get(path)).status_code == 404


@pytest.mark.parametrize("store", [True, False])
async def test_a_conversation_deleted_meanwhile_costs_no_answer(
    stored: Stored, until: Until, store: bool
) -> None:
    id = (await stored.client.post("/v1/conversations", json={})).json()["id"]
    stored.engine.hold.clear()
    asking = asyncio.create_task(stored.create(conversation=id, store=store))
    await until(lambda: bool(stored.engine.prompts))
    assert (await stored.client.delete(f"/v1/conversations/{id}")).status_code == 200
    stored.engine.hold.set()
    answer = await asking
    assert (answer.status_code, answer.json().get("status")) == (200, "completed")


async def test_a_background_response_is_put_into_its_conversation(stored: Stored) -> None:
    made = (await stored.client.post("/v1/conversations", json={})).json()
    queued = (await stored.create("one", conversation=made["id"], background=True)).json()
    await stored.ended(queued["id"])
    await stored.create("two", conversation=made["id"])
    assert stored.engine.prompts == ["one", "oneHello!two"]


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({"limit": 0}, "limit"),
        ({"limit": 101}, "limit"),
        ({"limit": "x"}, "limit"),
        ({"order": "up"}, "order"),
        ({"after": "msg_0"}, "after"),
    ],
)
async def test_pages_that_cannot_be(stored: Stored, query: dict[str, Any], param: str) -> None:
    made = (await stored.create()).json()
    refused = await stored.client.get(f"/v1/responses/{made['id']}/input_items", params=query)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)


async def test_items_that_no_request_could_hold(stored: Stored) -> None:
    refused = await stored.client.post("/v1/conversations", json={"items": [{"type": "massage"}]})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "items[0]")
    made = (await stored.client.post("/v1/conversations", json={})).json()["id"]
    for path in ("/v1/conversations", f"/v1/conversations/{made}"):
        many = {"metadata": {str(number): "" for number in range(17)}}
        refused = await stored.client.post(path, json=many)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "metadata")
    item = {"role": "crowd", "content": "hi"}
    refused = await stored.client.post("/v1/conversations", json={"items": [item]})
    error = refused.json()["error"]
    assert (error["param"], error["message"].partition(" must")[0]) == ("items", "items.role")


async def test_only_background_responses_are_streamed_or_cancelled(stored: Stored) -> None:
    made = (await stored.create()).json()
    assert (await stored.get(made["id"], stream="true")).status_code == 400
    assert (await stored.client.post(f"/v1/responses/{made['id']}/cancel")).status_code == 400


@pytest.mark.parametrize("more", [{}, {"stream": True}, {"background": True}], ids=str)
async def test_an_ingress_stores_what_a_replica_answers(
    cluster: Any, tmp_path: Path, more: dict[str, Any], events: Callable[[str], list[str]]
) -> None:
    store = StoreSettings(path=str(tmp_path / "store.db"))
    one = await cluster(1, store=store)
    body = {"model": "m", "input": "one", "max_output_tokens": 4}
    first = (await one.client.post("/v1/responses", json=body)).json()
    continued = {**body, "previous_response_id": first["id"], **more}
    answer = await one.client.post("/v1/responses", json=continued)
    assert answer.status_code == 200, answer.text
    id = (json.loads(events(answer.text)[-1])["response"] if "stream" in more else answer.json())[
        "id"
    ]
    while (kept := (await one.client.get(f"/v1/responses/{id}")).json())["status"] == "queued" or (
        kept["status"] == "in_progress"
    ):
        pass
    assert kept["previous_response_id"] == first["id"]
    assert kept["status"] == "incomplete"  # four tokens
    assert kept["usage"]["input_tokens"] > first["usage"]["input_tokens"]
    assert kept["background"] is bool(more.get("background"))
    await one.app.ingress.drain(0.0)


def test_a_killed_server_keeps_what_was_complete(serving: Any, tmp_path: Path) -> None:
    import serve_process

    options = [*serve_process.simulated(time_per_token_ms=50), "--store", str(tmp_path / "s.db")]
    body = {"model": "simulated", "input": "a", "max_output_tokens": 1}
    with serving(*options) as server, httpx.Client(base_url=server.url) as client:
        complete = client.post("/v1/responses", json=body).json()
        long = {**body, "max_output_tokens": 1000, "background": True}
        running = client.post("/v1/responses", json=long).json()
        server.stop(signal.SIGKILL)
    with serving(*options) as server, httpx.Client(base_url=server.url) as client:
        assert client.get(f"/v1/responses/{complete['id']}").json() == complete
        lost = client.get(f"/v1/responses/{running['id']}").json()
        assert lost["status"] == "failed"
        assert "server" in lost["error"]["message"]
        body["previous_response_id"] = complete["id"]
        assert client.post("/v1/responses", json=body).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
async def test_an_item_may_refer_to_a_call_of_a_stored_response(make: Any, stream: bool) -> None:
    said = ['<tool_call>\n{"name": "look", "arguments": {"input": "x"}}\n</tool_call>'] * 2
    stored = await make(said)
    tools = [{"type": "custom", "name": "look"}]
    answer = await stored.create(tools=tools, stream=stream)
    id = re.findall(r"resp_\w+", answer.text)[0]
    calls = (await stored.get(id)).json()["output"]
    assert len({call["id"] for call in calls}) == 2
    asked: list[Any] = [{"role": "user", "content": "hi"}]
    asked += [{"type": "item_reference", "id": call["id"]} for call in calls]
    results = [
        {"type": "custom_tool_call_output", "call_id": call["call_id"], "output": "y"}
        for call in calls
    ]
    second = await stored.create([*asked, *results], tools=tools)
    assert second.status_code == 200, second.text
    items = (await stored.client.get(f"/v1/responses/{second.json()['id']}/input_items")).json()
    assert [item for item in items["data"] if item["type"] == "custom_tool_call"] == calls[::-1]


async def test_the_items_of_a_conversation_may_refer_to_stored_ones(stored: Stored) -> None:
    message = (await stored.create()).json()["output"][0]
    reference = {"type": "item_reference", "id": message["id"]}
    path, own = "/v1/conversations", {"role": "user", "content": "hi"}
    talk = (await stored.client.post(path, json={"items": [own, reference]})).json()
    path = f"/v1/conversations/{talk['id']}/items"
    assert (await stored.client.get(path)).json()["data"][0] == message
    added = await stored.client.post(path, json={"items": [reference]})
    assert added.json()["data"][0]["content"] == message["content"]
    unknown = {"type": "item_reference", "id": "msg_nothing"}
    refused = await stored.client.post(path, json={"items": [own, unknown]})
    assert (refused.status_code, refused.json()["error"]["param"]) == (404, "items[1]")


async def test_references_are_read_in_one_go_and_are_not_without_bound(
    stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [(await stored.create()).json()["output"][0]["id"] for _ in range(3)]
    references = [{"type": "item_reference", "id": id} for id in made]
    store = stored.ingress.ingress.store
    reads: list[Any] = []
    monkeypatch.setattr(store, "items", _noted(store.items, reads))
    assert (await stored.create(references)).status_code == 200
    assert len(reads) == 1
    for many, words in (
        ([references[0]] * 2, "same stored one"),
        ([{**references[0], "id": f"msg_{n}"} for n in range(1001)], "1001 items refer"),
    ):
        refused = await stored.create(many)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "input")
        assert words in refused.json()["error"]["message"]
    assert len(reads) == 1


def _noted(call: Any, calls: list[Any]) -> Any:
    def noted(*given: Any) -> Any:
        calls.append(given)
        return call(*given)

    return noted


async def test_an_item_may_refer_to_one_of_a_stored_response(make: Any) -> None:
    stored = await make()
    first = (await stored.create()).json()
    reference = {"type": "item_reference", "id": first["output"][0]["id"]}
    asked = [{"role": "user", "content": "hi"}, reference, {"role": "user", "content": "more"}]
    second = await stored.create(asked)
    assert second.status_code == 200, second.text
    assert stored.engine.prompts[-1] == "hiHello!more"
    items = (await stored.client.get(f"/v1/responses/{second.json()['id']}/input_items")).json()
    assert "item_reference" not in {item["type"] for item in items["data"]}
    for unknown in ("msg_nothing", "fc_call_1", "", None, 7):
        asked[1] = {"type": "item_reference", "id": unknown}
        refused = await stored.create(asked)
        assert refused.status_code in (400, 404)
        assert refused.json()["error"]["param"].startswith("input[1]")


@pytest.mark.parametrize("background", [False, True])
async def test_a_thread_looks_at_a_long_conversation_behind_a_short_body(
    stored: Stored, monkeypatch: pytest.MonkeyPatch, background: bool
) -> None:
    threads: list[int] = []
    usual = ResponseBody.request

    def noting(body: ResponseBody, **options: Any) -> Any:
        threads.append(threading.get_ident())
        return usual(body, **options)

    monkeypatch.setattr(ResponseBody, "request", noting)
    first = (await stored.create([{"role": "user", "content": "a"}] * 2001)).json()
    threads.clear()
    second = await stored.create(
        "and?", previous_response_id=first["id"], **({"background": True} if background else {})
    )
    if background:
        assert (await stored.ended(second.json()["id"]))["status"] == "completed"
    assert threading.get_ident() not in threads[1:]  # behind the check of the short body alone
    assert len(threads) > 1
