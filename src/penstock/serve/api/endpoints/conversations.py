"""`/v1/conversations`: stored conversations and their items."""

from __future__ import annotations

from typing import Any

from msgspec import Struct, field
from starlette.responses import Response

from penstock.errors import NotStoredError, RequestError
from penstock.openai.responses_api import Item, ResponseBody, item_list, items_of
from penstock.serve.api.endpoints.responses import opened, page_of
from penstock.serve.api.exchange import Exchange


class ConversationBody(Struct, kw_only=True):
    """Body of `POST /v1/conversations`: the first items, and what the client notes."""

    items: list[dict[str, Any]] | None = None
    metadata: dict[str, str] | None = None


class ConversationUpdate(Struct, kw_only=True):
    """Body that changes a conversation."""

    metadata: dict[str, str] = field(default_factory=dict)


class ConversationItems(Struct, kw_only=True):
    """Body that adds items to a conversation."""

    items: list[dict[str, Any]]


async def create(exchange: Exchange, body: ConversationBody) -> Response:
    """Begin a conversation, with its first items if there are any."""
    store, _ = opened(exchange)
    items = _checked(body.items or [])
    return exchange.json(await store.make_conversation(exchange.owner, body.metadata or {}, items))


async def retrieve(exchange: Exchange) -> Response:
    """A conversation, without its items."""
    store, _ = opened(exchange)
    return exchange.json(await store.conversation(exchange.owner, _id(exchange)))


async def update(exchange: Exchange, body: ConversationUpdate) -> Response:
    """Replace the metadata of a conversation."""
    store, _ = opened(exchange)
    return exchange.json(await store.conversation(exchange.owner, _id(exchange), body.metadata))


async def delete(exchange: Exchange) -> Response:
    """Delete a conversation with its items."""
    store, _ = opened(exchange)
    id = _id(exchange)
    await store.delete_conversation(exchange.owner, id)
    return exchange.json({"id": id, "object": "conversation.deleted", "deleted": True})


async def add_items(exchange: Exchange, body: ConversationItems) -> Response:
    """Add items to a conversation."""
    store, _ = opened(exchange)
    items = _checked(body.items)
    return exchange.json(item_list(await store.add_items(exchange.owner, _id(exchange), items)))


async def list_items(exchange: Exchange) -> Response:
    """The items of a conversation, newest first."""
    store, _ = opened(exchange)
    items, _ = await store.conversation_items(exchange.owner, _id(exchange), "conversation_id")
    return page_of(exchange, items)


async def show_item(exchange: Exchange) -> Response:
    """One item of a conversation."""
    store, _ = opened(exchange)
    items, _ = await store.conversation_items(exchange.owner, _id(exchange), "conversation_id")
    wanted = exchange.request.path_params["item_id"]
    for item in items:
        if item["id"] == wanted:
            return exchange.json(item)
    raise NotStoredError(f"there is no item '{wanted[:100]}'", param="item_id")


async def delete_item(exchange: Exchange) -> Response:
    """Delete one item of a conversation, which is the answer."""
    store, _ = opened(exchange)
    wanted = exchange.request.path_params["item_id"]
    return exchange.json(await store.delete_item(exchange.owner, _id(exchange), wanted))


def _id(exchange: Exchange) -> str:
    return str(exchange.request.path_params["conversation_id"])


def _checked(items: list[Item]) -> list[Item]:
    """The items in their full form. Raises `RequestError` for those that no request could hold."""
    full = items_of(items)
    if full:
        try:
            ResponseBody(input=full).request()
        except RequestError as error:
            param = error.param and error.param.replace("input[", "items[")
            raise RequestError(str(error).replace("input[", "items["), param=param) from None
    return full
