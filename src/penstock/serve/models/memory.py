"""Memory: what a model takes, estimated from its files, and what all models may take.

An estimate loads and downloads nothing: a model of a hub is known only if it is in the cache.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from msgspec import Struct

from penstock import demo
from penstock.engines.base import Resident
from penstock.engines.disk.cache import hub_folder
from penstock.errors import EngineStartError
from penstock.llm_config import LLMConfig, parallelism

DEFAULT_KV_CACHE_BYTES = 1 << 30
_WEIGHTS = (".safetensors", ".bin", ".gguf", ".pt", ".pth")
_BYTES = {
    **dict.fromkeys(("float32", "f32", "float"), 4.0),
    **dict.fromkeys(("float16", "f16", "half", "bfloat16", "bf16"), 2.0),
    **dict.fromkeys(("fp8", "fp8_e4m3", "fp8_e5m2", "int8", "u8"), 1.0),
    **dict.fromkeys(("u4", "fp4_e2m1"), 0.5),
}
_NO_MODEL = frozenset({"simulated", "remote"})
"""Engines that hold no model in memory."""


class MemoryBudget:
    """Bounds the estimated memory of all loaded models by `total` bytes; None is no limit."""

    def __init__(self, total: int | None = None) -> None:
        self.total = total
        self._held: dict[Resident, int] = {}
        self._acquiring = asyncio.Lock()
        self._changed = asyncio.Event()
        self._unloads = 0  # how many are under way

    @property
    def used(self) -> int:
        """Bytes that are taken or promised."""
        return sum(self._held.values())

    def take(self, resident: Resident, size: int) -> bool:
        """Give the resident `size` bytes if they are free. Unloads nothing; returns whether it
        did.
        """
        if resident in self._held:
            return True
        if self.total is not None and self.used + size > self.total:
            return False
        self._held[resident] = size
        return True

    async def acquire(self, resident: Resident, size: int) -> None:
        """Make room for `size` bytes: unload the residents that have been idle longest, or wait
        until one is idle.

        Raises `EngineStartError` for more than the whole budget.
        """
        # Before the lock: its holder may be waiting for this very resident to become idle.
        if resident in self._held:
            return
        self.check(size)
        async with self._acquiring:
            while not await self.make_room(resident, size):
                self._changed.clear()
                await self._changed.wait()

    async def make_room(self, resident: Resident, size: int) -> bool:
        """As `acquire`, but returns False if it would have to wait until a resident is idle. The
        needs of a running request must not wait for that: others may wait for the request's end. It
        does wait for unloads under way.
        """
        while not self.take(resident, size):
            idle = [
                (since, other) for other in self._held if (since := other.idle_since) is not None
            ]
            if idle:
                longest = min(idle, key=lambda pair: pair[0])[1]
                # This call may be cancelled; the unload must still finish.
                await asyncio.shield(longest.unload())
            elif self._unloads:
                self._changed.clear()
                await self._changed.wait()
            else:
                return False
        return True

    @contextmanager
    def unloading(self) -> Iterator[None]:
        """A resident gives its memory back while this lasts."""
        self._unloads += 1
        try:
            yield
        finally:
            self._unloads -= 1
            self._changed.set()

    def check(self, size: int) -> None:
        """Raise `EngineStartError` for more than the budget."""
        if self.total is not None and size > self.total:
            raise EngineStartError(
                f"it takes about {size >> 20} MiB, and the memory budget is {self.total >> 20} MiB"
            )

    def release(self, resident: Resident) -> None:
        """The resident has given its memory back."""
        self._held.pop(resident, None)
        self._changed.set()

    def notify(self) -> None:
        """A resident has become idle."""
        self._changed.set()


class ModelSize(Struct, frozen=True):
    """What the files of a model say: the bytes of its `weights`, the bytes that a `token` takes in
    the KV cache, the number of attention `heads`. None: unknown.
    """

    weights: int | None = None
    token: int | None = None
    context_length: int | None = None
    heads: int | None = None


def model_size(config: LLMConfig) -> ModelSize:
    """The size of the model, as far as it is known without loading it."""
    if config.engine_name in _NO_MODEL:
        return ModelSize(0, 0)
    folder = local_files(config)
    if folder is None:
        return ModelSize()
    if folder.is_file():
        return ModelSize(folder.stat().st_size)
    # Formats of one model: an engine loads one of them.
    weights = max(
        sum(file.stat().st_size for file in folder.glob(f"*{suffix}")) for suffix in _WEIGHTS
    )
    try:
        stated = json.loads((folder / "config.json").read_bytes())
        described = stated.get("text_config", stated)
        full = config.deterministic and config.engine_name == "openvino"
        token = _token_bytes(
            described, {**config.engine_kwargs, **({"kv_cache_precision": "f32"} if full else {})}
        )
        length, heads = (
            described.get(name) for name in ("max_position_embeddings", "num_attention_heads")
        )
    except (OSError, ValueError, TypeError, ArithmeticError, AttributeError, RecursionError):
        return ModelSize(weights or None)
    return ModelSize(
        weights or None,
        token,
        length if isinstance(length, int) else None,
        heads if isinstance(heads, int) else None,
    )


def local_files(config: LLMConfig) -> Path | None:
    """The model's directory or file on this machine; None if it is not here."""
    source = config.model_source
    if source == demo.MODEL_NAME:
        return demo.model_path("openvino" if config.engine_name == "openvino" else "huggingface")
    path = Path(source).expanduser()
    if os.path.exists(path):  # not path.exists(), which raises OSError for a name that is too long
        return path
    cache = hub_folder(source)
    try:
        revision = (cache / "refs" / "main").read_text().strip()
    except OSError:
        return None
    snapshot = cache / "snapshots" / revision
    return snapshot if snapshot.is_dir() else None


def kv_cache_bytes(config: LLMConfig) -> int | None:
    """The bytes of a replica's KV caches, one for each worker, if the options state their size.
    None if the engine takes what is left of its device.
    """
    if config.engine_name in _NO_MODEL:
        return 0
    given = config.engine_kwargs.get("kv_cache_memory_bytes")
    if isinstance(given, int):
        return given * parallelism(config.engine_kwargs).workers
    return (
        DEFAULT_KV_CACHE_BYTES * parallelism(config.engine_kwargs).data
        if config.engine_name == "openvino"
        else None
    )


def memory_estimate(config: LLMConfig) -> int:
    """About how many bytes the loaded model takes: `ray_actor_options["memory"]` if given, else the
    size of its files, for each data-parallel rank, and of the KV cache. A prefill side counts too.
    """
    beside = memory_estimate(config.prefill_config) if config.prefill_config is not None else 0
    given = config.deployment_config.ray_actor_options.get("memory")
    if given:
        return int(given) + beside
    cache = kv_cache_bytes(config)
    weights = (model_size(config).weights or 0) * parallelism(config.engine_kwargs).data
    return weights + (DEFAULT_KV_CACHE_BYTES if cache is None else cache) + beside


def copy_estimate(config: LLMConfig) -> int:
    """About how many bytes the further copies of the model take. Log probabilities are read from a
    copy with 32 bits a weight; decisions from one with 16, or 32 if the engine is deterministic.
    The files have 16 bits or fewer.
    """
    exact = config.deterministic or config.engine_kwargs.get("deterministic")
    copies = 4 if exact else 3
    return copies * (model_size(config).weights or 0)


def _token_bytes(described: Mapping[str, Any], options: Mapping[str, Any]) -> int | None:
    """Bytes that one token takes in the KV cache, over all layers and heads."""
    layers, heads = described.get("num_hidden_layers"), described.get("num_attention_heads")
    if not isinstance(layers, int) or not isinstance(heads, int):
        return None
    kinds = (
        *(options.get(name) for name in ("kv_cache_dtype", "kv_cache_precision", "dtype")),
        *(described.get(name) for name in ("dtype", "torch_dtype")),
    )
    value = next((_BYTES[kind] for kind in kinds if isinstance(kind, str) and kind in _BYTES), 2.0)
    try:
        # Latent attention: one compressed vector a token, for keys and values alike.
        if rank := described.get("kv_lora_rank"):
            width = rank + (described.get("qk_rope_head_dim") or 0)
        else:
            size = described.get("head_dim") or described["hidden_size"] // heads
            width = 2 * size * (described.get("num_key_value_heads") or heads)
        return int(layers * width * value)
    except (LookupError, TypeError, ValueError, ArithmeticError):
        return None
