"""How one layer group's KV memory lies in a page."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from octavo.kernels.quantized_kv import Kv, QuantizedKv

_SCALE = torch.float32


@dataclass(frozen=True, slots=True)
class KvLayout:
    """A page is ``[num_layers, 2 (K, V), num_kv_heads, block_size, head_dim]``, contiguous, so that copying or
    swapping a block is one move of ``page_bytes`` and a head's tokens lie one after the other.

    With ``dtype`` int8 each head's ``block_size`` rows are followed by their scales, float32 [block_size]: they lie in
    the page, so whatever moves a block moves them too, and beside the rows, so that one stretch of memory is read.

    The device cache is one tensor ``[num_blocks, page_bytes]`` of bytes.
    """

    num_layers: int
    num_kv_heads: int
    head_dim: int
    block_size: int
    dtype: torch.dtype

    @property
    def is_quantized(self) -> bool:
        """Whether keys and values are int8 with scales."""
        return self.dtype == torch.int8

    @property
    def rows_bytes(self) -> int:
        """Bytes of the rows of one head in a block; where scales follow, padded to where one may lie."""
        size = self.block_size * self.head_dim * self.dtype.itemsize
        return -(-size // _SCALE.itemsize) * _SCALE.itemsize if self.is_quantized else size

    @property
    def head_bytes(self) -> int:
        """Bytes of one head's keys (or values) in a block, scales included."""
        return self.rows_bytes + (self.block_size * _SCALE.itemsize if self.is_quantized else 0)

    @property
    def page_bytes(self) -> int:
        """Bytes of one block, over all layers of the group."""
        return self.num_layers * 2 * self.num_kv_heads * self.head_bytes

    def allocate(self, num_blocks: int, device: torch.device | str = "cpu") -> torch.Tensor:
        """A cache of ``num_blocks`` pages of zeros, uint8 ``[num_blocks, page_bytes]``. On a CPU a page is given memory
        when it is first written, so that a large cache costs neither time nor memory before it is used."""
        shape = (num_blocks, self.page_bytes)
        if torch.device(device).type != "cpu":
            return torch.zeros(shape, dtype=torch.uint8, device=device)
        return torch.from_numpy(np.zeros(shape, np.uint8))  # torch.zeros writes them all

    def view(self, cache: torch.Tensor) -> Kv:
        """The cache as ``[num_blocks, num_layers, 2, num_kv_heads, block_size, head_dim]`` of ``dtype``: what kernels
        take as ``kv``. Offsets in it pass 2**31 elements: kernels index with int64."""
        heads = (cache.shape[0], self.num_layers, 2, self.num_kv_heads)
        if not self.is_quantized:
            return cache.view(self.dtype).view(*heads, self.block_size, self.head_dim)
        head = self.head_bytes
        strides = (self.page_bytes, 2 * self.num_kv_heads * head, self.num_kv_heads * head, head)
        shape = (*heads, self.block_size)
        return QuantizedKv(
            cache.view(torch.int8).as_strided((*shape, self.head_dim), (*strides, self.head_dim, 1)),
            cache.view(_SCALE).as_strided(
                shape, (*(size // _SCALE.itemsize for size in strides), 1), self.rows_bytes // _SCALE.itemsize
            ),
        )
