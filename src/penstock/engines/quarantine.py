"""Finds the requests that kill an engine, and refuses them from then on, without harm to the
others.

A request that was in the engine when it died is a suspect. Suspects are asked again in groups, with
no other request in the engine. Those that came last are asked first, as most killers kill at once;
all are asked together if the engine may have died of a signal from outside. A group that kills the
engine again is split. A request is proved to be a killer if it was alone in the engine at two
deaths, and the engine answered others in between (three deaths after a signal, and more if the
engine has died without any cause). A suspect is cleared if it ends in any other way, or has run for
twice as long as the engine had lived with it.

To find one killer among n requests takes at most log2(n) + 3 deaths. Large groups take fewer turns,
small groups fewer deaths. So the size follows from the time that a turn and a death have taken: if
answers are short and starts are long, suspects are asked one by one.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from math import log
from typing import TYPE_CHECKING, Any

import msgspec

from penstock.errors import EngineDeadError, QuarantinedError

if TYPE_CHECKING:
    from penstock.engines.supervisor import Supervisor

PROOF = 2
"""Deaths of the engine with a request alone in it, that prove the request to be the cause."""
NOTED = 2
"""A request that was present at this many deaths is a suspect from the start when asked again."""
REMEMBERED = 4096
"""How many requests with deaths are remembered; the oldest are forgotten."""
HARMLESS_S = 5.0
"""The least time, in seconds, for which a group of suspects has the engine to itself."""
_MOST_FALSE_ALARMS = 2
"""If the engine has died without a request at fault, the proof needs up to this many more
deaths.
"""
_GROWTH = 4
"""Groups grow at most by this factor, beginning with one: 1, 4, 16 …"""
_NOT_ASKED = {
    "request_id": "",
    "priority": 0,
    "batch": False,
    "stream": True,
    "forward_chunks": False,
    "kv_transfer_params": None,
    "packed": False,
}


class Visit:
    """One request, from its first try to its last: the one loop around an engine.

        with quarantine.visit(key, again) as visit:
            while not visit.answered:
                async with visit:
                    ...  # ask, and return or yield the answer

    `async with` waits until the request may enter the engine. When the engine dies, its supervisor
    revives it and the request is asked again, unless its caller has seen a part of the answer
    (`begun`) or `again` says no. Raises `QuarantinedError` when the request is proved to be the
    cause, else the last `EngineDeadError` or what keeps the engine from starting.
    """

    __slots__ = (
        *("_digest", "_key", "_quarantine", "again", "answered", "begun", "entered", "generation"),
        *("group", "lived", "number", "timer", "trusted"),
    )

    def __init__(
        self, quarantine: Quarantine, key: Callable[[], bytes], again: Callable[[], bool]
    ) -> None:
        self._quarantine = quarantine
        self._key = key
        self._digest: bytes | None = None
        self.again = again
        self.answered = False
        self.generation = 0
        """The generation of the engine that it has entered."""
        self.begun = False
        """Whether a part of the answer has been seen, so that it cannot be asked again."""
        self.number = 0
        self.entered = 0.0
        self.lived = 0.0
        """The longest time, in seconds, from its entry to the engine's death."""
        self.group: list[Visit] | None = None
        self.trusted = False
        self.timer: asyncio.TimerHandle | None = None

    @property
    def digest(self) -> bytes:
        """The digest that names the request. Computed when it is first needed."""
        if self._digest is None:
            self._digest = self._key()
        return self._digest

    def __enter__(self) -> Visit:
        return self

    def __exit__(self, *_: object) -> None:
        if self.group is not None:
            self._quarantine.forget(self)

    async def __aenter__(self) -> None:
        quarantine = self._quarantine
        if quarantine.troubled:
            await quarantine.turn(self)
        quarantine.enter(self)

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        self._quarantine.leave(self, error)
        supervisor = self._quarantine.supervisor
        if error is None:
            self.answered = True
            if supervisor is not None:
                supervisor.deaths = 0
        return (
            isinstance(error, EngineDeadError)
            and supervisor is not None
            and await supervisor.revived(self)
        )


@dataclass(slots=True)
class _Record:
    """A request's record: at how many `deaths` it was present, and at how many of these `alone`.
    `last` is how many answers the engine had given when the request was last alone at a death.
    `killed` is 1 if a signal from outside may have ended the engine: the request may be innocent.
    `proved`: the request is a killer.
    """

    deaths: int = 0
    alone: int = 0
    last: int = -1
    killed: int = 0
    proved: bool = False


class _Pool:
    """Suspects that wait for their turn, in groups of at most `most`. `kills`: as one group they
    have killed the engine, so one of them is a killer.
    """

    __slots__ = ("kills", "most", "visits")

    def __init__(self, visits: list[Visit], *, most: int, kills: bool = False) -> None:
        self.visits = visits
        self.most = most
        self.kills = kills
        for visit in visits:
            visit.group = visits


class Quarantine:
    """The quarantine of one engine, for all callers of the engine. It does not restart the engine:
    after a death it lets no request in until the supervisor, or whoever restarts the engine, calls
    `reopen`.

    `wants_probe`: the engine has died with one request alone in it, and answered nothing since.
    Then a probe decides: if the engine answers the probe (`answered`), the request is at fault; if
    not (`absolve`), no request is.
    """

    def __init__(self, supervisor: Supervisor | None = None) -> None:
        self.supervisor = supervisor
        self._records: OrderedDict[bytes, _Record] = OrderedDict()
        self._inside: dict[Visit, None] = {}
        self._dead: list[Visit] = []  # inside at a death, until all others inside have ended
        self._examined = False  # whether one of `_dead` was a suspect already
        self._pools: list[_Pool] = []  # the last is taken next
        self._turn: list[Visit] = []
        self._turn_began = 0.0
        self._turn_s: float | None = None
        self._down_since = 0.0
        self._start_s = 0.0
        self._entries = 0
        self._answers = 0
        self._false_alarms = 0  # requests that were alone at a death, and were answered afterwards
        self._down = False
        self.wants_probe = False
        self._changed = asyncio.Event()

    @property
    def troubled(self) -> bool:
        """Whether a request may have to wait: there are suspects, or remembered deaths."""
        return self._down or bool(self._records or self._turn or self._pools or self._dead)

    @property
    def suspects(self) -> int:
        """How many requests are under suspicion now."""
        return sum(len(pool.visits) for pool in self._pools) + len(self._turn) + len(self._dead)

    def answered(self) -> None:
        """The engine has answered something."""
        self._answers += 1
        self.wants_probe = False

    def absolve(self) -> None:
        """The engine dies by itself: its earlier deaths prove nothing against single requests."""
        self.wants_probe = False
        for record in self._records.values():
            if not record.proved:
                record.alone = record.deaths = 0

    def reopen(self) -> None:
        """After a death: the engine runs again, or asking it raises the reason why not."""
        if self._down:
            self._down = False
            loop = asyncio.get_running_loop()
            self._start_s = loop.time() - self._down_since
            if self._dead:
                loop.call_later(HARMLESS_S, self._leave_behind, self._dead)
        self._wake()

    def visit(self, key: Callable[[], bytes], again: Callable[[], bool] = lambda: True) -> Visit:
        """A visit for a request that is about to be asked. `key` computes the digest that names the
        request, if that is needed; `again` says whether the request may be asked again.
        """
        return Visit(self, key, again)

    async def turn(self, visit: Visit) -> None:
        """Wait until the request may enter. Raises `QuarantinedError`."""
        record = self._records.get(visit.digest)
        if record is not None and visit.group is None and (record.alone or record.deaths >= NOTED):
            self._pools.insert(0, _Pool([visit], most=1))
            if not self._turn:
                self._next_turn()
        while True:
            # An equal request may have been proved a killer meanwhile.
            if record is not None and record.proved:
                self.forget(visit)
                raise QuarantinedError(
                    f"this request has ended the engine's process {record.alone} times while no"
                    " other was in it, and is not put to it again; change its prompt or its"
                    " parameters"
                )
            if self._may_enter(visit):
                return
            await self._changed.wait()
            record = self._records.get(visit.digest)

    def enter(self, visit: Visit) -> None:
        """The request goes to the engine."""
        self._entries += 1
        visit.number = self._entries
        if self.supervisor is not None:
            visit.generation = self.supervisor.generation
        visit.trusted = False
        self._inside[visit] = None
        loop = asyncio.get_running_loop()
        visit.entered = loop.time()
        if visit.group is not None:
            self._turn_began = self._turn_began or visit.entered
            visit.timer = loop.call_later(max(HARMLESS_S, 2 * visit.lived), self._trust, visit)

    def leave(self, visit: Visit, error: BaseException | None) -> None:
        """The request has left the engine, with `error` if this try failed."""
        del self._inside[visit]
        if visit.timer is not None:
            visit.timer.cancel()
            visit.timer = None
        if isinstance(error, EngineDeadError):
            if not self._down:
                self._down, self._down_since = True, asyncio.get_running_loop().time()
            # A stream that had begun when somebody killed the process is no suspect: its next try,
            # if there is one, tells more.
            if error.suspects and not (error.killed and visit.begun):
                self._died(visit, error.killed)
        elif self.troubled:
            if error is None:
                self.answered()
                record = self._records.pop(visit.digest, None)
                if record is not None and record.alone:
                    self._false_alarms += 1
            self.forget(visit)
        if not self._inside and self.troubled:
            self._regroup()

    def forget(self, visit: Visit) -> None:
        """The request is no suspect any more: it was answered, or its caller has gone."""
        group, visit.group = visit.group, None
        if group is None:
            return
        group.remove(visit)
        if group is self._turn:
            if not group:
                if self._turn_began and not self._down:
                    self._turn_s = asyncio.get_running_loop().time() - self._turn_began
                self._next_turn()
        elif not group:
            self._pools = [pool for pool in self._pools if pool.visits]
            self._wake()

    def _may_enter(self, visit: Visit) -> bool:
        if self._down or self._dead or not self._turn:
            return not (self._down or self._dead)
        return visit.group is self._turn and all(
            other.group is self._turn or other.trusted for other in self._inside
        )

    def _next_turn(self) -> None:
        """Let the next group into the engine; everybody, if there are no more suspects."""
        self._turn, self._turn_began = [], 0.0
        if self._pools:
            pool = self._pools[-1]
            size = max(1, min(pool.most, self._best_size(len(pool.visits))))
            pool.most *= 1 if pool.kills else _GROWTH
            self._turn, pool.visits[:size] = pool.visits[:size], []
            for visit in self._turn:
                visit.group = self._turn
            if not pool.visits:
                self._pools.pop()
        self._wake()

    def _best_size(self, suspects: int) -> int:
        """The group size that finds a killer in the least time: with it, the suspects take
        `suspects / size` turns and log2(size) deaths.
        """
        if self._turn_s is None or self._start_s <= 0.0:
            return suspects
        return int(suspects * self._turn_s * log(2) / self._start_s)

    def _died(self, visit: Visit, killed: bool) -> None:
        """The engine has died with this request in it."""
        record = self._records.setdefault(visit.digest, _Record())
        self._records.move_to_end(visit.digest)
        while len(self._records) > REMEMBERED:
            self._records.popitem(last=False)
        record.deaths += 1
        record.killed |= killed
        if not self._dead and not self._inside:  # it was alone in the engine
            if record.last < self._answers:
                record.alone += 1
                record.last = self._answers
                false_alarms = min(self._false_alarms, _MOST_FALSE_ALARMS)
                record.proved = record.alone >= PROOF + record.killed + false_alarms
            self.wants_probe = True
        visit.lived = max(visit.lived, asyncio.get_running_loop().time() - visit.entered)
        self._examined = self._examined or visit.group is not None
        self.forget(visit)
        if not record.proved:
            visit.group = self._dead
        self._dead.append(visit)

    def _regroup(self) -> None:
        """The engine is empty: requests that were in it at its death become suspects, the latest
        first.
        """
        dead = sorted(
            (visit for visit in self._dead if visit.group is self._dead),
            key=lambda visit: -visit.number,
        )
        kills, self._examined = self._examined, False
        self._dead = []
        if dead:
            alone = (
                len(dead) == 1
                and (record := self._records.get(dead[0].digest)) is not None
                and record.alone
            )
            # A request that was alone gets its next turn last: meanwhile another cause of the death
            # may pass.
            most = (len(dead) + 1) // 2 if kills else 1
            if not kills and self._first_kill(dead):
                most = len(dead)
            self._pools.insert(
                0 if alone else len(self._pools), _Pool(dead, most=most, kills=kills)
            )
        if not self._turn:
            self._next_turn()
        self._wake()

    def _first_kill(self, dead: list[Visit]) -> bool:
        """Whether this is the first death, and a signal from outside may have caused it."""
        records = self._records
        return len(records) == len(dead) and all(
            (record := records.get(visit.digest)) is not None
            and record.killed
            and record.deaths == 1
            for visit in dead
        )

    def _leave_behind(self, dead: list[Visit]) -> None:
        """One of several processes of the engine has died. Regroup without waiting for the requests
        that go on in the others.
        """
        if self._dead is dead and dead:
            for visit in self._inside:
                visit.trusted = True
            self._regroup()

    def _trust(self, visit: Visit) -> None:
        visit.trusted = True
        self.forget(visit)
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def digest_of(asked: Any) -> bytes:
    """16 bytes that name what is asked of an engine. They do not depend on the caller, or on
    how the answer is sent.
    """
    if isinstance(asked, msgspec.Struct):
        neutral = {
            name: value for name, value in _NOT_ASKED.items() if name in asked.__struct_fields__
        }
        asked = (type(asked).__name__, msgspec.structs.replace(asked, **neutral))
    try:
        content = _encode(asked)
    except Exception:  # numbers and texts that have no encoding
        content = repr(asked).encode(errors="backslashreplace")
    return blake2b(content, digest_size=16).digest()


_encode = msgspec.msgpack.Encoder(order="deterministic", enc_hook=repr).encode
