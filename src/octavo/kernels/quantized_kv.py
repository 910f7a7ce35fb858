"""Keys and values in int8, as kernels take them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

LOWEST_PEAK = 1e-30
"""Rows whose largest magnitude is below this are stored as zeros: their scale would not be a normal float."""


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class QuantizedKv:
    """A cache's keys and values in int8, one scale for each token, KV head and K or V: a value is its int8 times its
    scale, the int8 running from -127 to 127. Both tensors are views of the same pages (see
    :class:`~octavo.kernels.layout.KvLayout`). A scale that is not finite marks a row that held what is not finite.
    """

    values: torch.Tensor  #: int8 [num_blocks, num_layers, 2 (K, V), num_kv_heads, block_size, head_dim]
    scales: torch.Tensor  #: float32 [num_blocks, num_layers, 2 (K, V), num_kv_heads, block_size]

    @property
    def shape(self) -> torch.Size:
        """The shape of ``values``."""
        return self.values.shape

    def data_ptr(self) -> int:
        """The address of the first page."""
        return self.values.data_ptr()


Kv = torch.Tensor | QuantizedKv
"""A cache as kernels take it: ``[num_blocks, num_layers, 2 (K, V), num_kv_heads, block_size, head_dim]`` of a floating
dtype, or the same quantised."""
