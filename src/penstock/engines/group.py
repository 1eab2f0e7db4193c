"""Several engines with the same model as one: started, stopped and started again together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from typing import Any, TypeVar

import msgspec

from penstock.balance.policies.base import RoutingPolicy
from penstock.balance.policies.load import LeastLoaded
from penstock.balance.pool import Member, Pool
from penstock.engines.base import LLMEngine
from penstock.engines.tasks import Batches, generated
from penstock.types import ChatRequest, CompletionRequest

T = TypeVar("T")


class _Rank(Member):
    """A rank, and its engine."""

    def __init__(self, id: str, engine: LLMEngine) -> None:
        super().__init__(id)
        self.engine = engine


class EngineGroup(LLMEngine):
    """A gang of `ranks`: data-parallel engines that answer for one another, each with a copy of the
    model.

    A request goes to the rank that `policy` chooses, the least loaded if it is not given. All start
    or none does; when one of them has died, the group has died, and whoever starts it again starts
    all of it. What is asked of the engine itself is asked of every rank.
    """

    def __init__(self, ranks: Sequence[LLMEngine], policy: RoutingPolicy | None = None) -> None:
        first = ranks[0]
        super().__init__(
            first.model_source, engine_kwargs=first.engine_kwargs, adapters=first.adapters
        )
        self.name = first.name  # type: ignore[misc]  # the group is called as its members are
        self.deterministic = first.deterministic
        self.ranks = list(ranks)
        self._pool = Pool(
            policy or LeastLoaded(), [_Rank(str(number), rank) for number, rank in enumerate(ranks)]
        )

    @property
    def deciding_kwargs(self) -> dict[str, Any]:
        return self.ranks[0].deciding_kwargs

    def stated_context_length(self) -> int | None:
        return self.ranks[0].stated_context_length()

    def brings(self, operation: str) -> bool:
        return self.ranks[0].brings(operation)

    # Life
    async def start(self) -> None:
        try:
            async with asyncio.TaskGroup() as starting:  # together: they may have to meet
                for rank in self.ranks:
                    starting.create_task(rank.start())
        except BaseException as error:
            await self.stop()
            if isinstance(error, ExceptionGroup):
                raise error.exceptions[0] from None
            raise
        each = [rank.capabilities for rank in self.ranks]
        self.capabilities = msgspec.structs.replace(
            each[0], max_concurrency=sum(one.max_concurrency for one in each)
        )

    async def stop(self) -> None:
        await self._all(lambda rank: rank.stop())

    async def check_health(self) -> None:
        await self._all(lambda rank: rank.check_health())

    # Requests
    async def generate(self, request: ChatRequest | CompletionRequest) -> Batches:
        with self._rank_for(request) as rank:
            async with aclosing(generated(rank, request)) as batches:
                async for batch in batches:
                    yield batch

    async def answer(self, task: str, request: Any) -> Any:
        with self._rank_for(None) as rank:
            return await getattr(rank, task)(request)

    async def control(self, operation: str, **options: Any) -> Any:
        """Ask every rank. The answer is a list of theirs; of a question, whether one says yes."""
        answers = await self._all(lambda rank: getattr(rank, operation)(**options))
        return any(answers) if operation in ("is_sleeping", "is_paused") else answers

    # Adapters
    async def resolve_lora(self, name: str, path: str) -> None:
        await self._all(lambda rank: rank.resolve_lora(name, path))
        self.adapters[name] = path

    async def remove_lora(self, name: str) -> None:
        await self._all(lambda rank: rank.remove_lora(name))
        self.adapters.pop(name, None)

    async def metrics(self) -> dict[str, float]:
        """Sums over the ranks; of a share, the mean."""
        total: dict[str, float] = {}
        for counted in await self._all(lambda rank: rank.metrics()):
            for name, value in counted.items():
                share = value / len(self.ranks) if name == "kv_cache_usage" else value
                total[name] = total.get(name, 0.0) + share
        return total

    @property
    def running(self) -> list[int]:
        return [rank.running for rank in self._pool.members]

    # How
    @contextmanager
    def _rank_for(self, request: Any) -> Iterator[LLMEngine]:
        """The rank that the policy chooses. It has one more request while this lasts."""
        route = self._pool.route_of(request)
        rank = self._pool.choose(route)
        assert rank is not None
        self._pool.policy.sent(route, rank.id)
        rank.running += 1
        try:
            yield rank.engine
        finally:
            rank.running -= 1

    async def _all(self, ask: Callable[[LLMEngine], Awaitable[T]]) -> list[T]:
        """Every rank is asked, also where one fails; then the first failure is raised."""
        answers = await asyncio.gather(*(ask(rank) for rank in self.ranks), return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        return [answer for answer in answers if not isinstance(answer, BaseException)]
