"""`/v1/responses` and `/v1/conversations`: answers, what is stored of them, what they continue, and
the items of stored conversations.
"""

from __future__ import annotations

import re
from typing import Any
from uuid import uuid4

import msgspec
from msgspec import Struct, field
from msgspec.structs import replace
from starlette.responses import Response

from penstock.errors import NotStoredError, RequestError
from penstock.openai.parameters.names import in_words_of
from penstock.openai.responses_api import (
    REFERENCE,
    Item,
    ResponseBody,
    item_list,
    item_page,
    items_of,
    response_object,
)
from penstock.serve.api.background import BackgroundRuns, EventsOf, Kept
from penstock.serve.api.endpoints import generation
from penstock.serve.api.exchange import RESPONSE_ID, Exchange
from penstock.serve.api.limits import MANY_PARTS, check_metadata, within_limits
from penstock.serve.api.query import is_ascending, truth, whole_number
from penstock.serve.models.preflight import check_before_load
from penstock.serve.replicas.forward import forward
from penstock.serve.replicas.model import RemoteModel
from penstock.serve.store.responses import ResponseStore, Turn

MOST_REFERENCES = 1000
"""Items of a request that refer to stored ones."""
SWITCH_ON = "this server stores no responses; `penstock serve --store FILE` makes it"


async def create(exchange: Exchange, body: ResponseBody) -> Response:
    """Continue a conversation, in OpenAI's Responses form."""
    store, background = exchange.ingress.store, exchange.ingress.background
    check_metadata(body.metadata)
    if store is None or background is None:
        return await _without_store(exchange, body)
    keep = body.store is not False
    _check(body, keep=keep)
    target = await exchange.target(body.model)
    owner, remote = exchange.owner, isinstance(target.handle, RemoteModel)
    body = replace(body, store=keep)
    if not isinstance(body.input, str):
        body = replace(body, input=await _whole(store, owner, body.input))
    earlier, conversation, upto = await _earlier(store, owner, body)
    given = items_of(body.input)
    if earlier:
        if given:
            # An error names an item by its place in the client's own list.
            await exchange.aside(body.request)
        body = replace(body, input=[*earlier, *given])
        exchange.long = exchange.long or len(earlier) > MANY_PARTS
    if remote or body.background:  # a foreground answer of this process checks it itself
        request = within_limits(await exchange.aside(body.request), exchange.limits)
        check_before_load(request)
    exchange.answer_id = uuid4().hex
    about = exchange.about("", target)
    turn = Turn(
        id=f"resp_{exchange.answer_id}",
        owner=owner,
        body=response_object(body, **about, status="queued", output=[], usage=None),
        input=given,
        previous=body.previous_response_id,
        conversation=conversation,
        upto=upto,
    )
    if not body.background:
        answer = await _answer(exchange, body, remote=remote)
        if not keep and conversation is None:
            return answer
        return Kept(answer, turn, store, whole=not body.stream)
    background.check_room()
    work = exchange.detached()
    try:
        answer = await _answer(work, replace(body, stream=True), remote=remote)
        run = await background.start(work, answer, turn)
    except BaseException:
        work.finish()  # it has the place of this request
        raise
    return EventsOf(exchange, run.parts()) if body.stream else exchange.json(turn.body)


async def retrieve(exchange: Exchange) -> Response:
    """A stored response; with `?stream=true` the events of a background response."""
    store, background = opened(exchange)
    query, owner = exchange.request.query_params, exchange.owner
    stored = await store.response(owner, exchange.request.path_params["response_id"])
    if not truth(query.get("stream", "false"), "stream"):
        return exchange.json(stored.body)
    if not stored.body.get("background"):
        raise RequestError("only background responses keep their events", param="stream")
    after = whole_number(query.get("starting_after", "-1"), "starting_after", least=-1)
    return EventsOf(exchange, background.events(owner, stored, after))


async def delete(exchange: Exchange) -> Response:
    """Delete a stored response; one that runs in the background ends."""
    store, background = opened(exchange)
    id = exchange.request.path_params["response_id"]
    await store.delete_response(exchange.owner, id)
    background.stop(id)
    return exchange.json({"id": id, "object": "response", "deleted": True})


async def cancel(exchange: Exchange) -> Response:
    """Cancel a background response. One that has ended stays as it is."""
    store, background = opened(exchange)
    id = exchange.request.path_params["response_id"]
    stored = await store.cancel(exchange.owner, id)
    if stored.status == "cancelled":
        background.stop(id)
    return exchange.json(stored.body)


async def input_items(exchange: Exchange) -> Response:
    """The items that a stored response answers, those of its conversation included."""
    store, _ = opened(exchange)
    id = exchange.request.path_params["response_id"]
    return page_of(exchange, await store.input_items(exchange.owner, id))


def opened(exchange: Exchange) -> tuple[ResponseStore, BackgroundRuns]:
    """The store, and what runs in the background. Raises `RequestError` without a store."""
    ingress = exchange.ingress
    if ingress.store is None or ingress.background is None:
        raise RequestError(SWITCH_ON)
    return ingress.store, ingress.background


def page_of(exchange: Exchange, items: list[Item]) -> Response:
    """A page of the items, by the query's `limit`, `order` and `after`."""
    query = exchange.request.query_params
    return exchange.json(
        item_page(
            items,
            ascending=is_ascending(query),
            limit=whole_number(query.get("limit", "20"), "limit", least=1),
            after=query.get("after", ""),
        )
    )


async def _without_store(exchange: Exchange, body: ResponseBody) -> Response:
    id = exchange.request.headers.get(RESPONSE_ID)
    if exchange.ingress.is_replica and id is not None:
        exchange.answer_id = id  # the ingress in front has a store
        return await generation.responses(exchange, body)
    for name in ("previous_response_id", "conversation", "background"):
        if getattr(body, name) not in (None, False):
            raise RequestError(f"{name}: {SWITCH_ON}", param=name)
    return await generation.responses(exchange, replace(body, store=False))


def _check(body: ResponseBody, *, keep: bool) -> None:
    if body.background and not keep:
        raise RequestError("a background response must be stored", param="background")
    if body.previous_response_id is not None and body.conversation is not None:
        raise RequestError(
            "a response continues another one or a conversation, not both",
            param="previous_response_id",
        )


async def _whole(
    store: ResponseStore, owner: str, items: list[Item], field: str = "input"
) -> list[Item]:
    """The items of a request's field, each that refers to a stored one replaced by that."""
    wanted = {
        f"{field}[{number}]": str(item.get("id"))
        for number, item in enumerate(items)
        if item.get("type") == REFERENCE
    }
    if not wanted:
        return items
    if len(wanted) > MOST_REFERENCES:
        raise RequestError(
            f"{len(wanted)} items refer to stored ones; a request may have {MOST_REFERENCES}: go on"
            " from a response by 'previous_response_id'",
            param=field,
        )
    if len(wanted) > len(set(wanted.values())):
        raise RequestError("two items refer to the same stored one", param=field)
    found = await store.items(owner, wanted)
    return [found.get(f"{field}[{number}]", item) for number, item in enumerate(items)]


async def _earlier(
    store: ResponseStore, owner: str, body: ResponseBody
) -> tuple[list[Item], str | None, int]:
    """The items that a request continues; the id of its conversation, if any, and the position of
    the last item there.
    """
    if body.previous_response_id is not None:
        return await store.items_before(owner, body.previous_response_id), None, 0
    if body.conversation is None:
        return [], None, 0
    given: Any = body.conversation
    id = given if isinstance(given, str) else given.get("id")
    if not isinstance(id, str):
        raise RequestError(
            "conversation must be an id, or an object with one", param="conversation"
        )
    items, last = await store.conversation_items(owner, id)
    return items, id, last


async def _answer(exchange: Exchange, body: ResponseBody, *, remote: bool) -> Response:
    if remote:
        return await forward(exchange, msgspec.json.encode(body))
    return await generation.responses(exchange, body)


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


async def create_conversation(exchange: Exchange, body: ConversationBody) -> Response:
    """Begin a conversation, with its first items if there are any."""
    store, _ = opened(exchange)
    check_metadata(body.metadata)
    items = _checked(await _whole(store, exchange.owner, body.items or [], "items"))
    return exchange.json(await store.make_conversation(exchange.owner, body.metadata or {}, items))


async def retrieve_conversation(exchange: Exchange) -> Response:
    """A conversation, without its items."""
    store, _ = opened(exchange)
    return exchange.json(await store.conversation(exchange.owner, _id(exchange)))


async def update_conversation(exchange: Exchange, body: ConversationUpdate) -> Response:
    """Replace the metadata of a conversation."""
    store, _ = opened(exchange)
    check_metadata(body.metadata)
    return exchange.json(await store.conversation(exchange.owner, _id(exchange), body.metadata))


async def delete_conversation(exchange: Exchange) -> Response:
    """Delete a conversation with its items."""
    store, _ = opened(exchange)
    id = _id(exchange)
    await store.delete_conversation(exchange.owner, id)
    return exchange.json({"id": id, "object": "conversation.deleted", "deleted": True})


async def add_items(exchange: Exchange, body: ConversationItems) -> Response:
    """Add items to a conversation."""
    store, _ = opened(exchange)
    items = _checked(await _whole(store, exchange.owner, body.items, "items"))
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
        body = ResponseBody(input=full)
        try:
            body.request()
        except RequestError as error:
            told = in_words_of(body, error)
            param = told.param and told.param.replace("input", "items", 1)
            why = re.sub(r"\binput(?=[.\[])", "items", str(told))
            raise RequestError(why, param=param) from None
    return full
