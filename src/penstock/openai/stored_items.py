"""The items of stored responses and conversations: what a request's `input` becomes, and lists."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from penstock.errors import RequestError

Item = dict[str, Any]
MOST_ITEMS = 100
_PREFIXES = {
    "function_call": "fc",
    "function_call_output": "fco",
    "custom_tool_call": "ctc",
    "custom_tool_call_output": "ctco",
    "reasoning": "rs",
}


def items_of(given: str | Sequence[Item]) -> list[Item]:
    """A text or items from a client in their full form: each with a type and an id; the content of
    a message is a list of parts. An id that the client gave stays.
    """
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    return [_full(item) for item in given]


def with_new_id(item: Item) -> Item:
    """The same item under an id of its own."""
    return {**item, "id": f"{_PREFIXES.get(item['type'], 'msg')}_{uuid4().hex}"}


def _full(item: Item) -> Item:
    kind = item.get("type") or "message"
    full = {**item, "type": kind}
    if kind == "message":
        full.setdefault("status", "completed")
        if isinstance(text := item.get("content"), str):
            of_model = item.get("role") == "assistant"
            part: Item = {"type": "output_text" if of_model else "input_text", "text": text}
            full["content"] = [{**part, "annotations": []} if of_model else part]
    return full if isinstance(item.get("id"), str) and item["id"] else with_new_id(full)


def item_page(items: Sequence[Item], *, limit: int, ascending: bool, after: str) -> dict[str, Any]:
    """A page of at most `limit` items, from behind the item `after` ("": from the first), newest
    first unless `ascending`. Raises `RequestError`.
    """
    if not 1 <= limit <= MOST_ITEMS:
        raise RequestError(f"limit must be between 1 and {MOST_ITEMS}", param="limit")
    ordered = list(items if ascending else reversed(items))
    begin = 0
    if after:
        places = [number for number, item in enumerate(ordered) if item["id"] == after]
        if not places:
            raise RequestError(f"there is no item '{after[:100]}'", param="after")
        begin = places[0] + 1
    return item_list(ordered[begin : begin + limit], has_more=begin + limit < len(ordered))


def item_list(items: Sequence[Item], *, has_more: bool = False) -> dict[str, Any]:
    """Items in OpenAI's form of a list."""
    return {
        "object": "list",
        "data": list(items),
        "first_id": items[0]["id"] if items else None,
        "last_id": items[-1]["id"] if items else None,
        "has_more": has_more,
    }
