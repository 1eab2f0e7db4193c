"""The console's page and the facts that it shows, without a browser."""

from __future__ import annotations

import asyncio
import re
from importlib.resources import files
from typing import Any

import pytest

from penstock.engines.simulated.engine import SimulatedEngine
from penstock.serve.api import metrics, traffic
from penstock.serve.api.endpoints import console
from penstock.types import Usage

CHAT = {"model": "sim", "messages": [{"role": "user", "content": "secret words"}]}
SOURCES = {
    name: files("penstock.serve").joinpath("console", name).read_text() for name in console.FILES
}


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def passed(answer: Any) -> Any:
    return answer.json()["requests"]


# The page
async def test_the_page_is_there_with_all_its_files(client: Any) -> None:
    page = await client.get("/console")
    assert (page.status_code, page.text) == (200, SOURCES["index.html"])
    for name, kind in console.FILES.items():
        if name == console.PAGE:
            continue
        answer = await client.get(f"/console/{name}")
        assert (answer.text, answer.headers["content-type"]) == (SOURCES[name], kind)
        if name.endswith(".js") and name != "main.js":
            assert f'href="console/{name}"' in page.text, "it is loaded with the page"
    assert (await client.get("/console/nothing.js")).status_code == 404
    slash = await client.get("/console/")
    assert slash.headers["location"] == "../console"


def test_the_page_is_small_and_has_no_other_files() -> None:
    there = {one.name for one in files("penstock.serve").joinpath("console").iterdir()}
    assert there == set(console.FILES)
    assert sum(len(text.encode()) for text in SOURCES.values()) < 100_000


async def test_the_policy_lets_nothing_in(client: Any) -> None:
    for path in ("/console", "/console/main.js", "/console/icon.svg"):
        headers = (await client.get(path)).headers
        policy = dict(
            part.strip().partition(" ")[::2]
            for part in headers["content-security-policy"].split(";")
        )
        assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"


def test_the_sources_make_no_markup_of_text_and_name_no_other_place() -> None:
    for name, text in SOURCES.items():
        for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
            assert word not in text, name
        assert "new Function" not in text
        for address in re.findall(r"https?://[\w.]+", text):
            assert address == "http://www.w3.org", name  # a name, which nothing loads
    page = SOURCES["index.html"]
    assert not re.search(r"<script>|<style|style=|\son\w+=", page)
    # The key is in memory: what the browser keeps is the theme.
    assert re.findall(r"localStorage\.setItem\((\w+)", "".join(SOURCES.values())) == ["THEME"]
    assert "sessionStorage" not in "".join(SOURCES.values())
    assert "document.cookie" not in "".join(SOURCES.values())


async def test_without_a_console_there_is_nothing(ingress: Any, served: Any) -> None:
    app = served(*ingress.handles.values(), console=False)
    async with app.client() as client:
        for path in ("/console", "/console/main.js"):
            assert (await client.get(path)).status_code == 404
        assert (await client.post("/console/live", json={})).status_code == 404
        assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200
    assert app.ingress.traffic is None


# Its facts
async def test_the_facts_of_models(client: Any) -> None:
    answer = (await client.post("/console/live", json={})).json()
    assert (answer["operator"], answer["control"], answer["batches"]) == (True, False, False)
    (model,) = answer["models"]
    assert (model["id"], model["engine"], model["state"]) == ("sim", "simulated", "ready")
    assert (model["running"], model["waiting"]) == (0, 0)
    assert model["adapters"] == ["german", "summary"]


async def test_requests_as_they_pass(client: Any) -> None:
    await client.post("/v1/chat/completions", json={**CHAT, "max_tokens": 5})
    await client.post("/v1/chat/completions", json={**CHAT, "temperature": -1})
    await client.get("/v1/models")
    await client.get("/nowhere")
    found = passed(await client.post("/console/live", json={}))
    good, bad = found["ended"]
    assert (good["endpoint"], good["model"], good["status"]) == (
        "/v1/chat/completions",
        "sim",
        200,
    )
    assert (good["tokens"], good["error"]) == (5, None)
    assert bad["status"] == 400
    assert found["under_way"] == []
    assert "secret" not in str(found)
    again = passed(await client.post("/console/live", json={"after": found["after"]}))
    assert again == {"after": 2, "ended": [], "under_way": []}
    late = passed(await client.post("/console/live", json={"after": 1}))
    assert [one["number"] for one in late["ended"]] == [2]


async def test_a_request_under_way_shows_how_far_it_is(
    served: Any, handle: Any, scripted: Any, until: Any
) -> None:
    engine = scripted(["a", "b", "c"])
    app = served(handle("sim", engine))
    async with app.client() as client:
        engine.hold.clear()
        asking = asyncio.create_task(
            client.post("/v1/chat/completions", json={**CHAT, "stream": True})
        )
        await until(lambda: bool(engine.prompts))
        (one,) = passed(await client.post("/console/live", json={}))["under_way"]
        assert (one["endpoint"], one["tokens"], "number" in one) == (
            "/v1/chat/completions",
            0,
            False,
        )
        engine.hold.set()
        await asking
        found = passed(await client.post("/console/live", json={}))
        assert (found["under_way"], found["ended"][0]["tokens"]) == ([], 3)


async def test_bodies_are_kept_only_while_somebody_asks(
    client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    await client.post("/v1/chat/completions", json=CHAT)
    await client.post("/console/live", json={"bodies": True})
    await client.post("/v1/chat/completions", json={**CHAT, "user": "x" * traffic.BODY_BYTES})
    before, kept = passed(await client.post("/console/live", json={}))["ended"]
    assert "body" not in before
    assert "secret words" in kept["body"]
    assert len(kept["body"]) == traffic.BODY_BYTES
    monkeypatch.setattr(traffic, "BODIES_S", -1.0)  # so that it is too long ago at once
    await client.post("/console/live", json={"bodies": True})
    await client.post("/v1/chat/completions", json=CHAT)
    assert "body" not in passed(await client.post("/console/live", json={}))["ended"][-1]


async def test_lines_of_batches_count_as_tokens(client: Any, ingress: Any) -> None:
    ingress.ingress.note_batch_line("sim", Usage(3, 7))
    (model,) = (await client.post("/console/live", json={})).json()["models"]
    assert model["batch_tokens"] == 7
    page = (await client.get("/metrics")).text
    assert 'penstock_generation_tokens_total{model_name="sim"} 7.0' in page
    assert 'penstock_prompt_tokens_total{model_name="sim"} 3.0' in page


async def test_only_so_many_requests_are_remembered(client: Any, ingress: Any) -> None:
    for _ in range(traffic.KEPT + 5):
        await client.post("/v1/chat/completions", json={**CHAT, "temperature": -1})
    found = passed(await client.post("/console/live", json={}))
    assert (len(found["ended"]), found["after"]) == (traffic.KEPT, traffic.KEPT + 5)
    assert not ingress.ingress.traffic.under_way


async def test_who_sees_what(ingress: Any, served: Any) -> None:
    app = served(
        *ingress.handles.values(),
        api_keys=frozenset({"k1", "k2"}),
        admin_keys=frozenset({"boss"}),
        dev=True,
    )
    async with app.client() as client:
        page = await client.get("/console")
        assert (page.status_code, 'data-keys="needed"' in page.text) == (200, True)
        assert (await client.get("/console/main.js")).status_code == 200
        for headers in ({}, bearer("wrong")):
            answer = await client.post("/console/live", json={}, headers=headers)
            assert answer.status_code == 401
        for key in ("k1", "k2", "k2"):
            await client.post("/v1/chat/completions", json=CHAT, headers=bearer(key))

        async def seen(key: str) -> Any:
            return (await client.post("/console/live", json={}, headers=bearer(key))).json()

        own, all_of_them = await seen("k2"), await seen("boss")
        assert (own["operator"], own["control"]) == (False, False)
        assert len(own["requests"]["ended"]) == 2
        assert (all_of_them["operator"], all_of_them["control"]) == (True, True)
        assert len(all_of_them["requests"]["ended"]) == 3
        # Who asks for bodies has its own kept.
        await client.post("/console/live", json={"bodies": True}, headers=bearer("k1"))
        for key in ("k1", "k2"):
            await client.post("/v1/chat/completions", json=CHAT, headers=bearer(key))
        latest = (await seen("boss"))["requests"]["ended"][-2:]
        assert ["body" in one for one in latest] == [True, False]


async def test_foreign_pages_get_no_facts(client: Any) -> None:
    assert (await client.get("/console/live")).status_code == 405
    foreign = await client.post(
        "/console/live", json={}, headers={"origin": "http://elsewhere.example"}
    )
    assert foreign.status_code == 403
    assert (await client.post("/console/live", json={"what": 1})).status_code == 400
    assert (await client.post("/console/live", json={"after": -1})).status_code == 400


async def test_a_slow_engine_leaves_its_counters_out(
    served: Any, handle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = handle("sim", SimulatedEngine())
    monkeypatch.setattr(metrics, "ENGINE_TIMEOUT_S", 0.0)

    async def never() -> dict[str, float]:
        return await asyncio.get_running_loop().create_future()

    one.engine_metrics = never
    async with served(one).client() as client:
        (model,) = (await client.post("/console/live", json={})).json()["models"]
    assert model["counters"] == {}
