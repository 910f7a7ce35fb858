"""Calls of attention whose kernels are to be compiled: shapes and dtypes matter, contents do not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from compiling import Launch, compiled

from octavo.kernels import AttentionMetadata, KvLayout
from octavo.kernels.triton import fused_attention

FEATURES = {"window": 100, "softcap": 30.0, "sinks": torch.ones(32)}
"""All that can be done to a score."""


def launches(
    architecture: int,
    dim: int,
    new: int,
    *,
    dtype: torch.dtype = torch.bfloat16,
    kv_dtype: torch.dtype | None = None,
    block_size: int = 16,
    group: int = 4,
    **more: Any,
) -> dict[str, Launch]:
    """What fused_attention launches for four sequences of ``new`` tokens each, by kernel: eight KV heads."""
    return {
        each.name: each
        for each in compiled(architecture, _call(dim, new, dtype, kv_dtype or dtype, block_size, group, more))
    }


def _call(
    dim: int, new: int, dtype: torch.dtype, kv_dtype: torch.dtype, block_size: int, group: int, more: dict[str, Any]
) -> Callable[[], Any]:
    layout = KvLayout(2, 8, dim, block_size, kv_dtype)
    kv = layout.view(layout.allocate(2))
    meta = AttentionMetadata(
        torch.zeros(5, dtype=torch.int32),
        torch.zeros(4, dtype=torch.int32),
        torch.zeros(4, 4096 // block_size, dtype=torch.int32),
        torch.zeros(4 * new, dtype=torch.int64),
        torch.zeros(4 * new, dtype=torch.int64),
        new,
        4096,
    )
    qkv = torch.empty(4 * new, (8 * group + 16) * dim, dtype=dtype)
    out = torch.empty(4 * new, 8 * group * dim, dtype=dtype)
    angles = torch.empty(4096, dim)
    return lambda: fused_attention(
        qkv, None, None, 1e-6, angles, kv, 1, meta, dim**-0.5, out, 8 * group, 8, **more
    )  # fmt: skip
