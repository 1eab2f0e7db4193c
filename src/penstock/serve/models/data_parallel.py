"""Data parallel: a group of ranks, each with a copy of the model, behind one server.

A group is placed, started, started again and drained as a whole. An engine that makes data-parallel
ranks of its own (vLLM, SGLang) is left to do so, since its ranks may have to compute in step; of
any other, a group of engines is made.
"""

from __future__ import annotations

from typing import Any

import msgspec

from penstock.balance.policies.table import configured_policy
from penstock.engines.base import LLMEngine
from penstock.engines.group import EngineGroup
from penstock.errors import ConfigError
from penstock.llm_config import LLMConfig, parallelism
from penstock.serve.config.placement import deployment_options
from penstock.serve.config.serving_args import LLMServingArgs
from penstock.serve.models.server import LLMServer, engine_type, make_engine

SIZES = ("data_parallel_size", "dp_size")
ONE_MACHINE = "STRICT_PACK"


class DPServer(LLMServer):
    """One group. `engine_kwargs.data_parallel_size` (SGLang: `dp_size`) is how many ranks it has,
    at least 2.

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
    """Ranks of a group. Raises `ConfigError` where there would be none to choose from."""
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
