"""Data parallel: a group of ranks, each with a copy of the model, behind one server.

A group is placed, started, restarted and drained as a whole. An engine that makes data-parallel
ranks itself (vLLM, SGLang) does so, as its ranks may have to compute in step. For another engine, a
group of engines is made.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from typing import Any, TypeVar

import msgspec

from penstock.balance.policies.base import RoutingPolicy
from penstock.balance.policies.load import LeastLoaded
from penstock.balance.policies.table import configured_policy
from penstock.balance.pool import Member, Pool
from penstock.cores import parted, usable_cores
from penstock.engines.base import LLMEngine, Stated, able_together, counted_together
from penstock.engines.side_by_side import all_of
from penstock.engines.tasks import Batches, generated
from penstock.errors import ConfigError
from penstock.llm_config import LLMConfig, parallelism
from penstock.serve.config.placement import deployment_options
from penstock.serve.config.serving_args import LLMServingArgs
from penstock.serve.models.server import LLMServer, engine_type, make_engine
from penstock.types import ChatRequest, CompletionRequest

SIZES = ("data_parallel_size", "dp_size")
ONE_MACHINE = "STRICT_PACK"


class DPServer(LLMServer):
    """Serves one group. `engine_kwargs.data_parallel_size` (SGLang: `dp_size`) is its number of
    ranks, at least 2.

    A replica of this server is a group, so replica counts are counts of groups. Its ranks have
    their bundles on one machine; `placement_group_config.strategy` says otherwise, for engines that
    reach other machines themselves.
    """

    @classmethod
    def make_engine(cls, llm_config: LLMConfig) -> LLMEngine:
        size = group_size(llm_config)
        if engine_type(llm_config).makes_ranks:
            return make_engine(llm_config)
        alone = {
            name: value for name, value in llm_config.engine_kwargs.items() if name not in SIZES
        }
        rank = msgspec.structs.replace(llm_config, engine_kwargs=alone)
        policy = configured_policy(llm_config, default="least_loaded")
        return EngineGroup([make_engine(rank) for _ in range(size)], policy)

    @classmethod
    def get_deployment_options(cls, llm_config: LLMConfig) -> dict[str, Any]:
        group_size(llm_config)
        options = deployment_options(llm_config)
        if "placement_group_strategy" in options and llm_config.placement_group_config is None:
            options["placement_group_strategy"] = ONE_MACHINE
        return options


def group_size(config: LLMConfig) -> int:
    """The number of ranks of a group. Raises `ConfigError` if it is less than 2."""
    size = parallelism(config.engine_kwargs).data
    if size < 2:
        raise ConfigError(
            "must be at least 2: a group has several ranks",
            field="engine_kwargs.data_parallel_size",
            value=config.engine_kwargs.get("data_parallel_size"),
        )
    return size


def grouped(args: LLMServingArgs) -> LLMServingArgs:
    """The serving arguments with every model in groups. Raises `ConfigError` naming the model."""
    try:
        return msgspec.structs.replace(
            args, llm_configs=[as_group(config) for config in args.llm_configs]
        )
    except ConfigError as error:
        raise ConfigError(f"data parallel: {error}", value=error.value) from None


def as_group(config: LLMConfig) -> LLMConfig:
    """The configuration, served by a `DPServer` unless it names a server. Raises `ConfigError`."""
    group_size(config)
    return (
        config
        if config.server_cls is not None
        else msgspec.structs.replace(config, server_cls=DPServer)
    )


T = TypeVar("T")


class _Rank(Member):
    """A rank, and its engine."""

    def __init__(self, id: str, engine: LLMEngine) -> None:
        super().__init__(id)
        self.engine = engine


class EngineGroup(LLMEngine):
    """A group of `ranks`: data-parallel engines, each with a copy of the model. Any of them can
    answer a request.

    The ranks divide the group's cores among them. A request goes to the rank that `policy` chooses;
    by default the least loaded. Either all ranks start or none. When one rank has died, the group
    has died, and a restart starts all ranks. An operation on the engine is done by every rank.
    """

    def __init__(self, ranks: Sequence[LLMEngine], policy: RoutingPolicy | None = None) -> None:
        first = ranks[0]
        super().__init__(
            first.model_source, engine_kwargs=first.engine_kwargs, adapters=first.adapters
        )
        self.name = first.name  # type: ignore[misc]  # the group is called as its members are
        self.deterministic = first.deterministic
        self.ranks = list(ranks)
        for rank in self.ranks:
            rank.on_death = lambda: self.on_death()
        self._pool = Pool(
            policy or LeastLoaded(), [_Rank(str(number), rank) for number, rank in enumerate(ranks)]
        )

    @property
    def deciding_kwargs(self) -> dict[str, Any]:
        return self.ranks[0].deciding_kwargs

    def stated_inputs(self) -> tuple[str, ...]:
        return self.ranks[0].stated_inputs()

    def stated_context_length(self) -> int | None:
        return self.ranks[0].stated_context_length()

    def stated(self) -> Stated:
        return self.ranks[0].stated()

    def lacks(self) -> str:
        return self.ranks[0].lacks()

    @property
    def shares_steps(self) -> bool:
        return self.ranks[0].shares_steps

    def brings(self, operation: str) -> bool:
        return self.ranks[0].brings(operation)

    # Life
    async def start(self) -> None:
        parts = parted(self.cores or usable_cores(), len(self.ranks))
        for rank, cores in zip(self.ranks, parts, strict=True):
            rank.cores, rank.sharing, rank.model_source = cores, self.sharing, self.model_source
        try:
            await all_of(rank.start() for rank in self.ranks)  # they may have to meet
        except BaseException:
            await self.stop()
            raise
        self.capabilities = able_together([rank.capabilities for rank in self.ranks])

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
        """Ask every rank. Returns the list of their answers; for a yes-or-no question, whether one
        rank says yes.
        """
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
        return counted_together(await self._all(lambda rank: rank.metrics()))

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
        """The answers of all ranks. If one fails, the others are still asked; then the first
        failure is raised.
        """
        answers = await asyncio.gather(*(ask(rank) for rank in self.ranks), return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        return [answer for answer in answers if not isinstance(answer, BaseException)]
