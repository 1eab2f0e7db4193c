"""The parameters of a URL: honoured, harmless or refused, on every route."""

from __future__ import annotations

import typing
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from starlette.datastructures import QueryParams

from penstock.errors import RequestError
from penstock.serve.api.query import HARMLESS, check_query, truth, whole_number
from penstock.serve.api.routes import CONTROL_ENDPOINTS, ENDPOINTS
from penstock.service.endpoints.message_batches import MessageBatchRoutes
from penstock.service.endpoints.openai_api import BatchRoutes, FileRoutes, UploadRoutes

SERVICE: Any = None
EVERY = (
    *ENDPOINTS,
    *(
        endpoint
        for kind in (FileRoutes, UploadRoutes, BatchRoutes, MessageBatchRoutes)
        for endpoint in kind(SERVICE).endpoints()
    ),
)
BY_ROUTE = {(one.method, one.path): one for one in EVERY}
OF_SDKS = {
    "/v1/files": "openai.types.file_list_params:FileListParams",
    "/v1/batches": "openai.types.batch_list_params:BatchListParams",
    "/v1/responses/{response_id}": (
        "openai.types.responses.response_retrieve_params:ResponseRetrieveParamsStreaming"
    ),
    "/v1/responses/{response_id}/input_items": (
        "openai.types.responses.input_item_list_params:InputItemListParams"
    ),
    "/v1/conversations/{conversation_id}/items": (
        "openai.types.conversations.item_list_params:ItemListParams"
    ),
    "/v1/conversations/{conversation_id}/items/{item_id}": (
        "openai.types.conversations.item_retrieve_params:ItemRetrieveParams"
    ),
    "/v1/messages/batches": "anthropic.types.messages.batch_list_params:BatchListParams",
}
ELSEWHERE = {"conversation_id", "workspace_id"}  # in the path, in a header


@pytest.mark.parametrize("path", OF_SDKS)
def test_the_parameters_of_the_sdks_are_known(path: str) -> None:
    module, _, name = OF_SDKS[path].partition(":")
    fields = typing.get_type_hints(getattr(import_module(module), name)).keys() - ELSEWHERE
    known = {*(BY_ROUTE["GET", path].query or ()), *HARMLESS.get(path, {})}
    assert fields <= known


@pytest.mark.parametrize(
    "endpoint",
    [one for one in (*ENDPOINTS, *CONTROL_ENDPOINTS) if one.query is not None and not one.lenient],
    ids=lambda one: f"{one.method} {one.path}",
)
async def test_a_route_refuses_what_it_does_not_know(
    ingress: Any, served: Any, endpoint: Any
) -> None:
    (model,) = ingress.handles.values()
    async with served(model, dev=True).client() as client:
        answer = await client.request(
            endpoint.method,
            f"{endpoint.path}?modle=x",
            headers={"content-type": "application/json"},
        )
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert "modle" in error["message"]
    if not endpoint.path.startswith("/v1/messages"):
        assert error["param"] == "modle"
    assert not getattr(model, "calls", [])


async def test_the_harmless_are_taken(ingress: Any) -> None:
    async with ingress.client() as client:
        for path in (
            "/v1/models?limit=20&client_version=0.50.0",
            "/version?api-version=2026-01-01&beta=true",
        ):
            assert (await client.get(path)).status_code == 200
        asked = {"model": "sim", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
        answer = await client.post("/v1/messages?beta=true", json=asked)
        assert answer.json()["type"] == "message"
        answer = await client.post("/v1/chat/completions?api-version=preview", json=asked)
        assert answer.status_code == 200


def test_a_refusal_names_the_parameter_and_the_nearest() -> None:
    def refusal(given: str, known: tuple[str, ...] | None) -> tuple[str, str | None]:
        with pytest.raises(RequestError) as caught:
            check_query(QueryParams(given), "/v1/files", known)
        return str(caught.value), caught.value.param

    assert refusal("limt=3", ("limit", "after")) == (
        "unknown parameter 'limt' in the URL. Did you mean 'limit'?",
        "limt",
    )
    assert refusal("x=3", ()) == ("unknown parameter 'x' in the URL.", "x")
    for known in (("limit",), None):
        assert refusal("limit=3&limit=4", known) == ("'limit' stands twice in the URL", "limit")
    assert refusal(f"{'y' * 500}=1", ())[1] == "y" * 100
    check_query(QueryParams("limit=3&beta=true&beta=false"), "/v1/files", ("limit",))
    check_query(QueryParams("include[]=a&include[]=b&include=c"), "/v1/responses/{response_id}", ())


@pytest.mark.parametrize(
    "path",
    [
        *("/health", "/ping", "/ready", "/metrics", "/docs"),
        *("/console", "/console/", "/console/main.js"),
    ],
)
async def test_probes_and_pages_ignore_what_they_do_not_know(ingress: Any, path: str) -> None:
    async with ingress.client() as client:
        plain = await client.get(path)
        added = await client.get(f"{path}?_=1764492642&utm_source=a&utm_source=b&collect[]=x")
        assert added.status_code == plain.status_code < 400


async def test_which_model_a_probe_asks_for_is_checked(ingress: Any) -> None:
    async with ingress.client() as client:
        assert (await client.get("/ready?model=none&_=1")).status_code == 404
        assert (await client.get("/ready?model=none&model=sim")).status_code == 400


async def test_what_the_console_sends_is_checked(ingress: Any) -> None:
    async with ingress.client() as client:
        assert (await client.post("/console/live?theme=dark")).status_code == 400


async def test_metrics_by_name(ingress: Any, served: Any) -> None:
    (model,) = ingress.handles.values()
    ours, vllm = "penstock_num_requests_running", "vllm:num_requests_running"
    async with served(model, vllm_metrics=True).client() as client:
        for asked, found in (
            ([ours, vllm], [ours, vllm]),
            (["none", ours], [ours]),
            (["none"], []),
        ):
            text = (await client.get("/metrics", params={"name[]": asked})).text
            samples = [line for line in text.splitlines() if not line.startswith("#")]
            assert [line.partition("{")[0] for line in samples] == found


async def test_what_stands_in_the_url_and_in_the_body(ingress: Any, served: Any) -> None:
    (model,) = ingress.handles.values()
    async with served(model, dev=True).client() as client:
        for query, body in (
            ("level=2", {"options": {"level": 1}}),
            ("model=sim", {"model": "sim"}),
        ):
            answer = await client.post(f"/sleep?{query}", json=body)
            assert answer.status_code == 400
            assert answer.json()["error"]["param"] == query.partition("=")[0]
    assert model.calls == []


def test_the_page_lists_the_harmless() -> None:
    page = (Path(__file__).parents[3] / "docs" / "serving.md").read_text(encoding="utf-8")
    for parameters in HARMLESS.values():
        for name, why in parameters.items():
            assert f"| `{name}` |" in page
            assert f"| {why} |" in page


@pytest.mark.parametrize("text", ["", "x", "1e3", "1_0", " 5", "+5", "\u0663", "0", "-1", "1.0"])
def test_what_is_no_whole_number(text: str) -> None:
    with pytest.raises(RequestError, match="limit must be a whole number of at least 1"):
        whole_number(text, "limit", least=1)


def test_values() -> None:
    assert (whole_number("-1", "x", least=-1), whole_number("20", "x", least=1)) == (-1, 20)
    assert (truth("TRUE", "x"), truth("0", "x")) == (True, False)
    with pytest.raises(RequestError, match="stream must be true or false, not 'yes'"):
        truth("yes", "stream")
