"""Asks servers for their models, and derives the engine's capabilities."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, ClassVar, get_args

import msgspec
from msgspec import Struct, field

from penstock.engines.base import Capabilities
from penstock.engines.remote import lenient
from penstock.engines.remote.options import RemoteOptions, Task
from penstock.engines.remote.refusals import is_no_route
from penstock.engines.remote.requests import adapter_name, dialect_of
from penstock.engines.remote.upstreams import Upstream, Upstreams
from penstock.errors import (
    ConfigError,
    EngineStartError,
    EngineTimeoutError,
    PenstockError,
    UpstreamError,
    nearest,
)
from penstock.http.retries import is_throttling

AUTO = "auto"
"""The model name for "the only model that the server has"."""

_ALL_TASKS = frozenset(get_args(Task))
_OPENAI_TOP_LOGPROBS = 20
_UNASKED = "if it answers all the same, set engine_kwargs.discover to false"

_log = logging.getLogger(__name__)


class Card(Struct):
    """An entry of `/v1/models`: `parent`, `max_model_len` as in vLLM; `engine`, `metadata` ours."""

    id: str
    parent: str | None = None
    owned_by: str | None = None
    max_model_len: int | None = None
    engine: str | None = None
    metadata: dict[str, Any] | None = None


class _Cards(Struct):
    data: list[Card] | None
    needed: ClassVar = ("data",)


class Found(Struct):
    """What discovery knows about the model.

    `adapters` maps adapters to the server's names for them. `complete` is False while a Penstock
    server has not loaded the model: it reports more after that.
    """

    capabilities: Capabilities
    adapters: dict[str, str] = field(default_factory=dict)
    complete: bool = True


async def discover(model: str, upstreams: Upstreams, options: RemoteOptions) -> Found:
    """Ask every server for its models. Opens the breaker of a server that does not answer.

    Raises `EngineStartError` if a server lacks the model or refuses the key, and if none answers
    `UpstreamError` or `EngineTimeoutError`: of a server that refuses for load, if one does.
    """
    members = upstreams.members
    given: list[list[Card] | PenstockError | None] = [None] * len(members)
    if options.discover:
        given = await asyncio.gather(*(_ask(one, options.connect_timeout_s) for one in members))
    cards: list[Card | None] = []
    adapters: dict[str, str] = {}
    absent: list[tuple[Upstream, PenstockError]] = []
    for one, answer in zip(members, given, strict=True):
        if isinstance(answer, PenstockError):
            absent.append((one, answer))
            continue
        card = None
        if answer is not None:
            card = _choose(answer, one, model)
            one.model = card.id
            one.dialect = dialect_of(card.owned_by, card.engine)
            for other in answer:
                if other.parent == card.id:
                    name = other.id.removeprefix(f"{card.id}:")
                    adapters[name] = adapter_name(one.dialect, card.id, other.id)
        cards.append(card)
    if not cards:
        errors = [error for _, error in absent]
        raise next(filter(is_throttling, errors), errors[0])
    for one, error in absent:
        upstreams.trip(one)
        _log.warning("%s; the other servers go on without it", error)
    complete = not any(
        card.engine and "capabilities" not in (card.metadata or {}) for card in cards if card
    )
    return Found(_capabilities(cards, options, len(members), bool(adapters)), adapters, complete)


async def _ask(one: Upstream, patience_s: float) -> list[Card] | PenstockError | None:
    """A server's models; None if it has no list; the error if it does not answer now."""
    try:
        async with asyncio.timeout(patience_s):
            return _read(await one.models())
    except ConfigError:
        raise
    except ValueError:
        raise EngineStartError(
            f"{one.shown}/models did not answer in OpenAI's form; is this the API's base?"
        ) from None
    except UpstreamError as error:
        if error.http_status == 403 and "missing scopes" in str(error).lower():
            return None  # OpenAI's restricted keys may ask models, and not list them
        if error.http_status in (401, 403):
            key = one.options.api_key_env
            hint = (
                f"the key in {key} is not accepted"
                if key
                else "api_key_env names no variable that holds the key, such as PENSTOCK_API_KEY"
            )
            way = f"; {_UNASKED}" if error.http_status == 403 else ""
            raise EngineStartError(f"{error} ({hint}{way})") from None
        if is_no_route(error) or error.http_status == 501:
            return None
        return error
    except EngineTimeoutError as error:
        return error
    except TimeoutError:
        return EngineTimeoutError(f"{one.shown}/models: no answer within {patience_s:g} s")


def _read(body: bytes) -> list[Card] | None:
    """The models in a body; None if it has no list. Raises `ValueError`."""
    try:
        return msgspec.json.decode(body, type=_Cards).data
    except (ValueError, RecursionError):
        cards = lenient.read(body, _Cards | list[Card])
        return cards if isinstance(cards, list) else cards.data


def _choose(cards: Sequence[Card], one: Upstream, model: str) -> Card:
    wanted = one.options.model or model
    bases = [card for card in cards if card.parent in (None, card.id)]
    if wanted == AUTO and len(bases) == 1:
        return bases[0]
    for card in cards:
        if card.id == wanted:
            return card
    what = f"several models, and 'auto' is for one: {', '.join(card.id for card in bases[:20])}"
    if wanted != AUTO:
        what = f"no model '{wanted}'; {_UNASKED}. {nearest(wanted, [card.id for card in cards])}"
    raise EngineStartError(f"{one.shown} has {what}".rstrip())


def _capabilities(
    cards: Sequence[Card | None], options: RemoteOptions, servers: int, adapters: bool
) -> Capabilities:
    """The capabilities that all servers have. A server that reports none counts as having all."""
    listed = [card for card in cards if card is not None]
    theirs = [
        abilities
        for card in listed
        if isinstance(abilities := (card.metadata or {}).get("capabilities"), dict)
    ]
    beyond = bool(listed) and all(
        card.owned_by in ("penstock", "sglang", "vllm") for card in listed
    )

    def common(name: str, otherwise: frozenset[str]) -> frozenset[str]:
        if len(theirs) < len(cards):
            return otherwise
        return frozenset.intersection(
            *(frozenset(map(str, abilities.get(name) or ())) for abilities in theirs)
        )

    def least(name: str, otherwise: int) -> int:
        values = [abilities[name] for abilities in theirs if isinstance(abilities.get(name), int)]
        return min(values) if values and len(values) == len(cards) else otherwise

    lengths = [card.max_model_len for card in listed if card.max_model_len]
    structured = {"json_schema", "json_object"} | ({"regex", "grammar"} if beyond else set())
    return Capabilities(
        tasks=common("tasks", _ALL_TASKS) & _ALL_TASKS
        if options.tasks is None
        else frozenset(map(str, options.tasks)),
        context_length=options.max_model_len or min(lengths, default=0),
        max_concurrency=options.concurrency * servers,
        structured=common("structured", frozenset(structured))
        if options.structured is None
        else frozenset(map(str, options.structured)),
        max_top_logprobs=least("max_top_logprobs", _OPENAI_TOP_LOGPROBS)
        if options.max_top_logprobs is None
        else options.max_top_logprobs,
        adapters=adapters,
        prefix_caching=bool(theirs)
        and all(abilities.get("prefix_caching") is True for abilities in theirs),
        token_ids=False,
    )
