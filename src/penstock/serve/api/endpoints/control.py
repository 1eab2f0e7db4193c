"""The control routes, which need `dev`: `POST /sleep`, `GET /is_sleeping` and so on.

Each acts on one model and answers with one result a replica. All endpoints of this file are for
admins: the table of routes refuses any other.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from msgspec import Struct, field
from starlette.responses import PlainTextResponse, Response

import penstock
from penstock.config import masked
from penstock.errors import RequestError, UnsupportedError, by_kind
from penstock.openai.parameters.body import parse_body
from penstock.serve.api.exchange import Exchange
from penstock.serve.api.limits import decode_body


class ControlBody(Struct, kw_only=True):
    """Body of a control route: the model, and the method's options."""

    model: str = ""
    options: dict[str, Any] = field(default_factory=dict)


class RpcBody(ControlBody, kw_only=True):
    """Body of `POST /collective_rpc`: the options may stand beside the model, as in Ray's."""

    method: str | None = None
    args: list[Any] | None = None
    kwargs: dict[str, Any] | None = None
    timeout: float | None = None

    @property
    def beside(self) -> dict[str, Any]:
        given = {name: getattr(self, name) for name in ("method", "args", "kwargs", "timeout")}
        return {name: value for name, value in given.items() if value is not None}


def act(method: str) -> Callable[[Exchange], Awaitable[Response]]:
    """The endpoint that calls a control method: `POST` with a body, or with the options in the URL
    as in vLLM's API.
    """

    async def endpoint(exchange: Exchange) -> Response:
        given, form = await exchange.read_json(), form_of(method)
        body = parse_body(form, decode_body(given, Any)) if given else form()
        query = dict(exchange.request.query_params)
        options = {**getattr(body, "beside", {}), **body.options}
        for name in query:
            if name in options or (name == "model" and body.model):
                raise RequestError(f"'{name}' stands in the URL and in the body", param=name)
        model = query.pop("model", "") or body.model
        options |= {name: _value(text) for name, text in query.items()}
        return await _call(exchange, method, model, options)

    endpoint.__doc__ = f"Call `{method}` on every replica of a model."
    return endpoint


def form_of(method: str) -> type[ControlBody]:
    """The form of the body that calls a control method."""
    return RpcBody if method == "collective_rpc" else ControlBody


def ask(method: str) -> Callable[[Exchange], Awaitable[Response]]:
    """The endpoint that reads a state: `GET` with `?model=`."""

    async def endpoint(exchange: Exchange) -> Response:
        return await _call(exchange, method, exchange.request.query_params.get("model", ""), {})

    endpoint.__doc__ = f"Ask `{method}` of every replica of a model."
    return endpoint


class LoadAdapterBody(Struct, kw_only=True):
    """Body of `POST /v1/load_lora_adapter`: the adapter's name in requests, and its directory or
    URL. `load_inplace` replaces one of that name. `model` may be left out where there is one.
    """

    lora_name: str
    lora_path: str
    load_inplace: bool = False
    is_3d_lora_weight: bool = False
    model: str = ""


class UnloadAdapterBody(Struct, kw_only=True):
    """Body of `POST /v1/unload_lora_adapter`. vLLM's `lora_int_id` says nothing here."""

    lora_name: str
    lora_int_id: int | None = None
    model: str = ""


async def load_adapter(exchange: Exchange, body: LoadAdapterBody) -> Response:
    """Give a model another LoRA adapter."""
    if body.is_3d_lora_weight:
        raise UnsupportedError("is_3d_lora_weight is not supported", param="is_3d_lora_weight")
    options = {
        "lora_name": body.lora_name,
        "lora_path": body.lora_path,
        "load_inplace": body.load_inplace,
    }
    await _done(exchange, "load_lora_adapter", body.model, options)
    return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")


async def unload_adapter(exchange: Exchange, body: UnloadAdapterBody) -> Response:
    """Take a LoRA adapter away from a model."""
    await _done(exchange, "unload_lora_adapter", body.model, {"lora_name": body.lora_name})
    return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")


async def server_info(exchange: Exchange) -> Response:
    """How the server and its models are set up. Secrets are masked."""
    ingress = exchange.ingress
    models = [
        {
            "id": model_id,
            "engine": handle.engine_name,
            "state": handle.state().state,
            "config": masked(msgspec.to_builtins(getattr(handle, "config", None), enc_hook=repr)),
        }
        for model_id, handle in ingress.models.handles.items()
    ]
    limits = msgspec.to_builtins(ingress.settings.limits)
    return exchange.json({"version": penstock.__version__, "limits": limits, "models": models})


class ReplicaControlBody(Struct, kw_only=True):
    """Body of an ingress's call of a control method on one replica."""

    method: str
    options: dict[str, Any] = field(default_factory=dict)


async def act_here(exchange: Exchange, body: ReplicaControlBody) -> Response:
    """Call a control method on this replica, whose ingress asks for it."""
    target = await exchange.find("")
    (result,) = await target.handle.control(body.method, body.options)
    return exchange.json(result)


async def _call(exchange: Exchange, method: str, model: str, options: dict[str, Any]) -> Response:
    name, results = await _results(exchange, method, model, options)
    answer: dict[str, Any] = {"model": name, "method": method, "replicas": results}
    if method.startswith("is_"):  # as vLLM and Ray answer
        answer[method] = any(one.get("result") is True for one in results)
    elif method == "collective_rpc":  # as Ray answers
        answer["results"] = [
            {"replica": number, "worker_results": one.get("result") or []}
            for number, one in enumerate(results)
        ]
    return exchange.json(answer)


async def _results(
    exchange: Exchange, method: str, model: str, options: dict[str, Any]
) -> tuple[str, list[dict[str, Any]]]:
    target = await exchange.find(model)
    if target.adapter is not None:
        raise RequestError(f"'{target.name}' is an adapter; control its model", param="model")
    return target.name, await target.handle.control(method, options)


async def _done(exchange: Exchange, method: str, model: str, options: dict[str, Any]) -> None:
    """Call a control method. Raises the first error of a replica."""
    _, results = await _results(exchange, method, model, options)
    for result in results:
        if not result["ok"]:
            error = result["error"]
            raise by_kind(error["type"], error["message"], error.get("param"))


def _value(text: str) -> Any:
    """An option in the URL as a number or a truth value, if it is one."""
    if text.isascii() and text.isdecimal() and len(text) < 10:
        return int(text)
    return {"true": True, "false": False}.get(text.lower(), text)
