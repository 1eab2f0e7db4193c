"""Methods of a store that are transactions of its database."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar


class _Store(Protocol):
    _state: Any
    """Has `run(work)`, which calls `work` with a connection, in a transaction."""


S = TypeVar("S", bound=_Store)
C = TypeVar("C")
P = ParamSpec("P")
T = TypeVar("T")


def in_transaction(
    work: Callable[Concatenate[S, C, P], T],
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, T]]:
    """Make a method a coroutine that runs it as one transaction, in the database's thread. Its
    callers leave the connection out. What it wrote is undone if it raises.
    """

    @wraps(work)
    async def run(store: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        done: T = await store._state.run(lambda db: work(store, db, *args, **kwargs))
        return done

    return run
