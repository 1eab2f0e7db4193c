"""The requests of an ingress as they pass: the latest ones, and those under way."""

from __future__ import annotations

import time
from collections import Counter, deque
from typing import TYPE_CHECKING, Any

from msgspec import Struct

if TYPE_CHECKING:
    from penstock.serve.api.exchange import Exchange

KEPT = 200
"""How many ended requests are remembered."""
BODY_BYTES = 16384
"""How many bytes of a request's body are kept, if a console asks for bodies."""
UNKNOWN_ENDPOINT = "other"
"""The endpoint of a request for an unknown path."""
BODIES_S = 15.0
"""Seconds for which bodies are kept after a console asked for them."""


class PassedRequest(Struct, frozen=True):
    """A request that has ended, and its owner."""

    number: int
    owner: str
    facts: dict[str, Any]


class Traffic:
    """Remembers the facts of requests. It keeps their bodies only while a console asks for that."""

    def __init__(self) -> None:
        self.under_way: set[Exchange] = set()
        self.batch_tokens: Counter[str] = Counter()
        """Tokens that the lines of batches have generated, by model."""
        self._ended: deque[PassedRequest] = deque(maxlen=KEPT)
        self._count = 0
        self._asked: dict[str | None, float] = {}

    def note(self, exchange: Exchange) -> None:
        """Remember a request at its end. Left out are unknown paths, the console's own requests,
        and `GET` requests that use no engine.
        """
        self.under_way.discard(exchange)
        if exchange.endpoint == UNKNOWN_ENDPOINT or exchange.endpoint.startswith("/console"):
            return
        if not exchange.runs and exchange.request.method in ("GET", "HEAD"):
            return
        self._count += 1
        facts = _facts(exchange, exchange.ended)
        facts["status"], facts["error"] = exchange.status, exchange.error
        self._ended.append(PassedRequest(self._count, exchange.owner, facts))

    def ask_for_bodies(self, owner: str | None) -> None:
        """Keep the bodies of an owner's requests for a while; None: of all requests."""
        self._asked[owner] = time.monotonic() + BODIES_S

    def body(self, exchange: Exchange, body: bytes) -> None:
        """The body of a request has arrived: keep its beginning if a console asked for bodies."""
        now = time.monotonic()
        self._asked = {owner: until for owner, until in self._asked.items() if until > now}
        if None in self._asked or exchange.owner in self._asked:
            exchange.kept_body = body[:BODY_BYTES]

    @property
    def keeps_bodies(self) -> bool:
        """Whether a console has asked for bodies, perhaps long ago."""
        return bool(self._asked)

    def seen_by(self, owner: str | None, after: int) -> dict[str, Any]:
        """The requests that an owner sees: those that ended since number `after`, and those under
        way. Owner None sees all.
        """
        now = time.perf_counter()
        return {
            "after": self._count,
            "ended": [
                one.facts | {"number": one.number}
                for one in self._ended
                if one.number > after and owner in (None, one.owner)
            ],
            "under_way": [
                _facts(exchange, now)
                for exchange in sorted(self.under_way, key=lambda one: one.started)
                if owner in (None, exchange.owner)
            ],
        }


def _facts(exchange: Exchange, until: float) -> dict[str, Any]:
    """What a request is, without its content. Times in seconds."""
    first, usage = exchange.first_token_at, exchange.usage
    facts: dict[str, Any] = {
        "id": exchange.answer_id,
        "method": exchange.request.method,
        "endpoint": exchange.endpoint,
        "model": exchange.model,
        "created": exchange.created,
        "seconds": round(until - exchange.started, 4),
        "first_token": None if first is None else round(first - exchange.started, 4),
        "queued": round(max(exchange.queue_times, default=0.0), 4),
        "prompt_tokens": usage.prompt_tokens,
        "tokens": usage.completion_tokens or exchange.deltas,
    }
    if exchange.kept_body is not None:
        facts["body"] = exchange.kept_body.decode(errors="replace")
    return facts
