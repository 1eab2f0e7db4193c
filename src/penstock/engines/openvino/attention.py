"""Options that let the attention of a long text leave tokens out: `CacheEviction`, which forgets
tokens of the KV cache, and `SparseAttention`, which reads less of it. Imports nothing of OpenVINO.

`CacheEviction` keeps what the attention looked at most, as in
[H2O](https://arxiv.org/abs/2306.14048), the prompt weighed as in
[SnapKV](https://arxiv.org/abs/2404.14469). `SparseAttention` has GenAI's two modes: `trishape`
([TriShape](https://arxiv.org/abs/2412.10319)) and `xattention`
([XAttention](https://arxiv.org/abs/2503.16428)).
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from penstock.errors import ConfigError
from penstock.kv.prefix_index import BLOCK_SIZE

Tokens = Annotated[int, Meta(ge=1)]


class CacheEviction(Struct, frozen=True, forbid_unknown_fields=True):
    """Each request keeps at most `max_cache_size` tokens of its KV cache while it generates: the
    first `start_size`, the last `recent_size`, and between them those with the highest scores. All
    are multiples of 32. `aggregation_mode`: whether a token's scores are summed, or divided by its
    age too. `snapkv_window_size`: how many tokens at the end of the prompt score the others.
    """

    start_size: Tokens = 32
    recent_size: Tokens = 128
    max_cache_size: Tokens = 672
    aggregation_mode: Literal["norm_sum", "sum"] = "norm_sum"
    snapkv_window_size: Annotated[int, Meta(ge=0)] = 8

    def __post_init__(self) -> None:
        where = "engine_kwargs.cache_eviction"
        for name in ("start_size", "recent_size", "max_cache_size"):
            _check_blocks(getattr(self, name), f"{where}.{name}")
        least = self.start_size + self.recent_size
        if self.max_cache_size <= least:
            raise ConfigError(
                f"{self.max_cache_size} is not above start_size + recent_size, which is {least}",
                field=f"{where}.max_cache_size",
                value=self.max_cache_size,
            )


class SparseAttention(Struct, frozen=True, forbid_unknown_fields=True):
    """While a prompt is computed, its tokens attend to a part of those before them, all but the
    last `num_last_dense_tokens_in_prefill`. With `trishape`, to the first
    `num_retained_start_tokens_in_cache` and to the last `num_retained_recent_tokens_in_cache`
    (multiples of 32). With `xattention`, to blocks of `xattention_block_size` tokens whose
    estimated shares reach `xattention_threshold` together; the estimate looks at each
    `xattention_stride`-th token.
    """

    mode: Literal["trishape", "xattention"] = "trishape"
    num_last_dense_tokens_in_prefill: Annotated[int, Meta(ge=0)] = 100
    num_retained_start_tokens_in_cache: Annotated[int, Meta(ge=0)] | None = None
    num_retained_recent_tokens_in_cache: Annotated[int, Meta(ge=0)] | None = None
    xattention_threshold: Annotated[float, Meta(ge=0, le=1)] | None = None
    xattention_block_size: Literal[32, 64, 128, 256] | None = None
    xattention_stride: Literal[1, 2, 4, 8, 16] | None = None

    def __post_init__(self) -> None:
        where = "engine_kwargs.sparse_attention"
        other = "xattention" if self.mode == "trishape" else "num_retained"
        for name in self.__struct_fields__:
            if name.startswith(other) and getattr(self, name) is not None:
                raise ConfigError(
                    f"is for the other mode, not for {self.mode}", field=f"{where}.{name}"
                )
            if name.startswith("num_retained"):
                _check_blocks(getattr(self, name) or 0, f"{where}.{name}")


def _check_blocks(tokens: int, field: str) -> None:
    if tokens % BLOCK_SIZE:
        raise ConfigError(
            f"{tokens} is not a multiple of {BLOCK_SIZE}, the size of a block of the cache",
            field=field,
            value=tokens,
        )
