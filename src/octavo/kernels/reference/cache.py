"""Writing keys and values into blocks, and copying blocks."""

from __future__ import annotations

import torch


def write_kv(k: torch.Tensor, v: torch.Tensor, kv: torch.Tensor, layer: int, slots: torch.Tensor) -> None:
    """Store row t of k and v [T, HK, D] in slot ``slots[t]`` (block id * block_size + offset) of ``layer``.

    ``kv`` is :meth:`KvLayout.view`'s tensor [num_blocks, num_layers, 2, HK, block_size, D].
    """
    block_size = kv.shape[4]
    blocks, offsets = slots // block_size, slots % block_size
    kv[blocks, layer, 0, :, offsets] = k.to(kv.dtype)
    kv[blocks, layer, 1, :, offsets] = v.to(kv.dtype)


def copy_blocks(cache: torch.Tensor, sources: torch.Tensor, targets: torch.Tensor) -> None:
    """Copy whole pages, pair by pair and in order: cache uint8 [num_blocks, page_bytes], both ids int64 [N]."""
    for source, target in zip(sources.tolist(), targets.tolist(), strict=True):
        cache[target].copy_(cache[source])
