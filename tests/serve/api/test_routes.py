"""An endpoint is one function and one line of the table."""

from __future__ import annotations

from typing import Any

from msgspec import Struct
from starlette.responses import Response

from penstock.serve.api.exchange import Exchange
from penstock.serve.api.ingress import IngressApp
from penstock.serve.api.routes import Endpoint, describe

FILE = {"type": "object", "properties": {"file": {"type": "string"}}}


class CountBody(Struct):
    """Body of `POST /count`."""

    prompt: str
    model: str = ""


async def count(exchange: Exchange, body: CountBody) -> Response:
    """The length of a text.

    Not for the summary.
    """
    target = await exchange.target(body.model)
    return exchange.json({"model": target.name, "count": len(body.prompt)})


async def load(exchange: Exchange) -> Response:
    """How much there is to do."""
    return exchange.json({"load": exchange.ingress.inflight, "of": exchange.model})


TABLE = (
    Endpoint("POST", "/count", count, CountBody, runs=True),
    Endpoint("GET", "/load/{id:path}", load, query=("model", "since"), public=True),
    Endpoint("POST", "/upload", load, multipart=FILE),
)


async def test_the_form_in_the_table_is_checked_before_the_function_is_called(ingress: Any) -> None:
    ingress.app = IngressApp(ingress.ingress, TABLE)
    async with ingress.client() as client:
        assert (await client.post("/count", json={"prompt": "four"})).json() == {
            "model": "sim",
            "count": 4,
        }
        assert (await client.get("/load/x/y")).json() == {"load": 1, "of": ""}
        for body, param in (({"prompt": 4}, "prompt"), ({"prompt": "", "modle": ""}, "modle")):
            refused = await client.post("/count", json=body)
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)
        assert (await client.post("/count", content=b"{")).status_code == 400
        metrics = (await client.get("/metrics")).text
    assert 'endpoint="/count",model_name="sim",status="200"} 1.0' in metrics
    assert 'endpoint="/load/{id:path}",model_name="",status="200"} 1.0' in metrics


async def test_a_path_takes_the_methods_that_the_table_has_for_it(
    ingress: Any, served: Any
) -> None:
    (model,) = ingress.handles.values()
    site = served(model, cors_origins=("https://ui.example",))
    site.app = IngressApp(site.ingress, (*TABLE, Endpoint("DELETE", "/load/{id:path}", load)))
    page = {"origin": "https://ui.example"}
    async with site.client(headers=page) as client:
        for method, status in (("GET", 200), ("DELETE", 200), ("POST", 405)):
            assert (await client.request(method, "/load/x")).status_code == status
        allowed = (
            await client.options("/load/x", headers={"access-control-request-method": "DELETE"})
        ).headers["access-control-allow-methods"]
    assert allowed == "DELETE, GET, POST"


def test_the_description_follows_from_the_table() -> None:
    paths = describe(TABLE, with_keys=True)["paths"]
    assert set(paths) == {"/count", "/load/{id}", "/upload"}
    posted, asked, uploaded = paths["/count"]["post"], paths["/load/{id}"]["get"], paths["/upload"]
    assert posted["summary"] == "The length of a text."
    assert posted["requestBody"]["content"] == {
        "application/json": {"schema": {"$ref": "#/components/schemas/CountBody"}}
    }
    assert [(one["name"], one["in"], one["required"]) for one in asked["parameters"]] == [
        ("id", "path", True),
        ("model", "query", False),
        ("since", "query", False),
    ]
    assert asked["security"] == []
    assert "requestBody" not in asked
    assert uploaded["post"]["requestBody"]["content"] == {"multipart/form-data": {"schema": FILE}}
