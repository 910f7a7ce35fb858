"""Writing keys and values into blocks, reading them there, and copying blocks."""

from __future__ import annotations

import torch

from octavo.kernels.quantized_kv import LOWEST_PEAK, Kv, QuantizedKv


def quantize_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows [..., D] in int8, and a float32 scale [...] for each: its largest magnitude becomes 127. Rounded to nearest
    even. The scale of a row that is not finite is not finite either."""
    rows = x.float()
    peak = rows.abs().amax(-1)
    is_zero = peak < LOWEST_PEAK
    # a number divided by a tensor would be multiplied by its reciprocal: rounded twice, unlike in the other backends
    factor = torch.where(is_zero, 0.0, torch.full_like(peak, 127.0) / peak)
    whole = (rows * factor[..., None]).round().nan_to_num(0.0)
    return whole.to(torch.int8), torch.where(is_zero, 0.0, peak / 127.0)


def write_kv(k: torch.Tensor, v: torch.Tensor, kv: Kv, layer: int, slots: torch.Tensor) -> None:
    """Store row t of k and v [T, HK, D] in slot ``slots[t]`` (block id * block_size + offset) of ``layer``.

    ``kv`` is :meth:`KvLayout.view`'s, [num_blocks, num_layers, 2, HK, block_size, D].
    """
    block_size = kv.shape[4]
    blocks, offsets = slots // block_size, slots % block_size
    for which, rows in ((0, k), (1, v)):
        if isinstance(kv, QuantizedKv):
            values, scales = quantize_rows(rows)
            kv.values[blocks, layer, which, :, offsets] = values
            kv.scales[blocks, layer, which, :, offsets] = scales
        else:
            kv[blocks, layer, which, :, offsets] = rows.to(kv.dtype)


def read_kv(kv: Kv, blocks: torch.Tensor, layer: int, which: int) -> torch.Tensor:
    """Keys (``which`` 0) or values (1) of ``blocks``, as float32 [HK, len(blocks) * block_size, D]."""
    if isinstance(kv, QuantizedKv):
        rows = kv.values[blocks, layer, which].float() * kv.scales[blocks, layer, which][..., None]
    else:
        rows = kv[blocks, layer, which].float()
    return rows.transpose(0, 1).flatten(1, 2)


def copy_blocks(cache: torch.Tensor, sources: torch.Tensor, targets: torch.Tensor) -> None:
    """Copy whole pages, pair by pair and in order: cache uint8 [num_blocks, page_bytes], both ids int64 [N]."""
    for source, target in zip(sources.tolist(), targets.tolist(), strict=True):
        cache[target].copy_(cache[source])
