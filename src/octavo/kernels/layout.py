"""How one layer group's KV memory lies in a page."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class KvLayout:
    """A page is ``[num_layers, 2 (K, V), num_kv_heads, block_size, head_dim]``, contiguous, so that copying or
    swapping a block is one move of ``page_bytes`` and a head's tokens lie one after the other.

    The device cache is one tensor ``[num_blocks, page_bytes]`` of bytes.
    """

    num_layers: int
    num_kv_heads: int
    head_dim: int
    block_size: int
    dtype: torch.dtype

    @property
    def page_bytes(self) -> int:
        """Bytes of one block, over all layers of the group."""
        return self.num_layers * 2 * self.num_kv_heads * self.block_size * self.head_dim * self.dtype.itemsize

    def allocate(self, num_blocks: int, device: torch.device | str = "cpu") -> torch.Tensor:
        """A cache of ``num_blocks`` pages, uint8 ``[num_blocks, page_bytes]``, zeroed lazily by the system."""
        return torch.zeros(num_blocks, self.page_bytes, dtype=torch.uint8, device=device)

    def view(self, cache: torch.Tensor) -> torch.Tensor:
        """The cache as ``[num_blocks, num_layers, 2, num_kv_heads, block_size, head_dim]`` of ``dtype``: what kernels
        take as ``kv``. Offsets in it pass 2**31 elements: kernels index with int64."""
        shape = (cache.shape[0], self.num_layers, 2, self.num_kv_heads, self.block_size, self.head_dim)
        return cache.view(self.dtype).view(shape)
