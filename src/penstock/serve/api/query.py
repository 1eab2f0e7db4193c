"""What becomes of the parameters of a URL. A route honours the parameters that the table of routes
names. It refuses others, except harmless ones; probes, metrics and pages ignore them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from starlette.datastructures import QueryParams

from penstock.errors import RequestError, nearest

_ONE_PAGE = "all models come in one page"
_STORED = "what is stored comes whole"
HARMLESS: Mapping[str, Mapping[str, str]] = {
    "*": {
        "api-version": "Azure's clients name a version",
        "beta": "Anthropic's beta methods send it",
    },
    "/v1/models": {"limit": _ONE_PAGE, "client_version": "Codex sends it"},
    "/v1/responses/{response_id}": {
        "include": _STORED,
        "include_obfuscation": "nothing is obfuscated",
    },
    "/v1/responses/{response_id}/input_items": {"include": _STORED},
    "/v1/conversations/{conversation_id}/items": {"include": _STORED},
    "/v1/conversations/{conversation_id}/items/{item_id}": {"include": _STORED},
    "/server_info": {"config_format": "vLLM's parameter; the answer has one form, JSON"},
}
"""By route, or for all routes: the harmless parameters, and why each changes nothing. They may have
any value.
"""
_WHOLE = re.compile("-?[0-9]+")
_TRUTH = {"true": True, "1": True, "false": False, "0": False}


def check_query(
    given: QueryParams, path: str, known: Collection[str] | None, *, lenient: bool = False
) -> None:
    """Raise `RequestError` for a parameter that the route `path` does not know, and for one that is
    given twice. `known` None: the route takes any. A `lenient` route ignores unknown parameters,
    and takes lists (`name[]`).
    """
    seen: set[str] = set()
    harmless = {**HARMLESS["*"], **HARMLESS.get(path, {})}
    for name, _ in given.multi_items():
        if name.partition("[")[0] in harmless:  # lists are sent as name[]
            continue
        shown = name[:100]
        if known is not None and name not in known:
            if lenient:
                continue
            hint = nearest(shown, known)
            raise RequestError(
                f"unknown parameter '{shown}' in the URL. {hint}".strip(), param=shown
            )
        if name in seen and not (lenient and name.endswith("[]")):
            raise RequestError(f"'{shown}' stands twice in the URL", param=shown)
        seen.add(name)


def whole_number(text: str, name: str, *, least: int) -> int:
    """The value of a parameter. Raises `RequestError`."""
    number = int(text[:12]) if _WHOLE.fullmatch(text) else least - 1
    if number < least:
        raise RequestError(f"{name} must be a whole number of at least {least}", param=name)
    return number


def truth(text: str, name: str) -> bool:
    """The value of a parameter that is true or false. Raises `RequestError`."""
    value = _TRUTH.get(text.lower())
    if value is None:
        raise RequestError(f"{name} must be true or false, not '{text[:50]}'", param=name)
    return value


def is_ascending(given: QueryParams) -> bool:
    """Whether a page is wanted oldest first. Raises `RequestError`."""
    order = given.get("order", "desc")
    if order not in ("asc", "desc"):
        raise RequestError("order must be asc or desc", param="order")
    return order == "asc"
