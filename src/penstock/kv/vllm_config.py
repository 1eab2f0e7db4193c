"""Checks and completes the configuration that all of vLLM's connectors share."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from penstock.errors import ConfigError, nearest
from penstock.kv.base import VLLM_ROLES, Site

KNOWN = frozenset(
    {
        *(
            "kv_connector",
            "engine_id",
            "kv_buffer_device",
            "kv_role",
            "kv_port",
            "kv_connector_extra_config",
        ),
        *(
            "kv_connector_module_path",
            "enable_permute_local_kv",
            "kv_load_failure_policy",
            "kv_buffer_size",
        ),
        *("kv_rank", "kv_parallel_size", "kv_ip"),
    }
)


def check_config(config: Mapping[str, Any], where: str) -> None:
    """Raise `ConfigError` for a configuration that vLLM would refuse."""
    for key in config:
        if key not in KNOWN:
            raise ConfigError(
                f"unknown key '{key}'", field=where, value=config[key], hint=nearest(key, KNOWN)
            )
    role = config.get("kv_role")
    if role is not None and role not in VLLM_ROLES.values():
        raise ConfigError(
            f"unknown role '{role}'",
            field=f"{where}.kv_role",
            hint=nearest(role, VLLM_ROLES.values()),
        )
    extra = config.get("kv_connector_extra_config")
    if extra is not None and not isinstance(extra, Mapping):
        raise ConfigError(
            "must be a mapping", field=f"{where}.kv_connector_extra_config", value=extra
        )


def complete_config(config: Mapping[str, Any], site: Site) -> dict[str, Any]:
    """The configuration of one engine: its role by default, a unique id, and a policy by which a
    missing cache is recomputed instead of failing the request.
    """
    given = config.get("engine_id")
    own = uuid.uuid4().hex[:16]
    return {
        "kv_role": VLLM_ROLES[site.role],
        "kv_load_failure_policy": "recompute",
        **config,
        "kv_connector_extra_config": dict(config.get("kv_connector_extra_config") or {}),
        "engine_id": f"{given}-{own}" if given else own,
    }
