"""What keys and values are stored as."""

from __future__ import annotations

import torch

from octavo.config import EngineConfig
from octavo.kernels.layout import KvLayout
from octavo.model import ModelConfig


def kv_layout(config: EngineConfig, model: ModelConfig, dtype: torch.dtype) -> KvLayout:
    """The pages of a model that computes in ``dtype``: all its layer groups have the same."""
    stored = torch.int8 if config.kv_cache_dtype == "int8" else dtype
    return KvLayout(model.layer_groups[0].num_layers, model.num_kv_heads, model.head_dim, config.block_size, stored)


def describe_kv(layout: KvLayout, dtype: torch.dtype) -> str:
    """What keys and values are stored as, for a person; ``dtype`` is the model's."""
    if not layout.is_quantized:
        return _name(layout.dtype)
    plain = KvLayout(layout.num_layers, layout.num_kv_heads, layout.head_dim, layout.block_size, dtype)
    ratio = plain.page_bytes / layout.page_bytes
    return f"int8, a float32 scale for each token and head: {ratio:.2f}x the blocks of {_name(dtype)}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
