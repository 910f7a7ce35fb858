"""Attention over paged keys and values: who computes which rows of a flat batch.

Sequences that bring one row go to the split-KV kernel of ``decode.py``, others to ``prefill.py``; in a mixed batch both
are launched, and each leaves the other's rows alone. With ``batch_invariant`` all go to ``invariant.py``. What is
launched, and its grid, follow from the batch's shapes and from ``max_query`` alone: never from lengths, which only the
device knows, so that a graph captured from a batch of one row a sequence serves any other.
"""

from __future__ import annotations

import torch

from octavo.kernels.metadata import AttentionMetadata
from octavo.kernels.quantized_kv import Kv, QuantizedKv
from octavo.kernels.triton.cache import KvPlace
from octavo.kernels.triton.decode import decode
from octavo.kernels.triton.invariant import invariant_attention
from octavo.kernels.triton.prefill import prefill
from octavo.kernels.triton.rotary import rotate_and_write

MOST_DIMS = 256
"""The largest heads that tiles are sized for."""


def paged_attention(
    q: torch.Tensor,
    kv: Kv,
    layer: int,
    meta: AttentionMetadata,
    scale: float,
    out: torch.Tensor,
    window: int | None = None,
    softcap: float = 0.0,
    sinks: torch.Tensor | None = None,
    batch_invariant: bool = False,
) -> torch.Tensor:
    """Causal attention of q [T, HQ, D] over the blocks that ``meta`` names; writes and returns out [T, HQ, D].

    A sequence whose ``context_len`` is 0 is padding: it brings one row, which becomes zeros. Without
    ``batch_invariant`` how a context is cut in pieces, and so the last bit of a row, depends on the other sequences.

    Raises:
        ValueError: the parts do not fit each other.
    """
    return _attend(q, None, kv, layer, meta, scale, out, window, softcap, sinks, batch_invariant)


def fused_attention(
    qkv: torch.Tensor,
    q_norm: torch.Tensor | None,
    k_norm: torch.Tensor | None,
    eps: float,
    cos_sin: torch.Tensor,
    kv: Kv,
    layer: int,
    meta: AttentionMetadata,
    scale: float,
    out: torch.Tensor,
    num_heads: int,
    num_kv_heads: int,
    window: int | None = None,
    softcap: float = 0.0,
    sinks: torch.Tensor | None = None,
    batch_invariant: bool = False,
) -> torch.Tensor:
    """q/k norm, rotary, KV write and paged attention: qkv [T, (HQ + 2 HK) D] to out [T, HQ * D], which is returned.

    Queries (and in a prefill keys) in ``qkv`` are overwritten. A chunk's own keys and values are read from there, in
    place of their blocks, where the cache holds them in the same dtype and ``batch_invariant`` does not forbid it.

    Raises:
        ValueError: the parts do not fit each other.
    """
    has_own = meta.max_query > 1 and not batch_invariant and not isinstance(kv, QuantizedKv) and kv.dtype == qkv.dtype
    rotate_and_write(
        qkv, q_norm, k_norm, eps, cos_sin, meta.positions, kv, layer, meta.slots, num_heads, num_kv_heads, has_own
    )
    rows = qkv.view(len(qkv), num_heads + 2 * num_kv_heads, -1)
    q, k, v = rows.split((num_heads, num_kv_heads, num_kv_heads), dim=1)
    heads = out.view(len(out), num_heads, -1)
    _attend(
        q, (k, v) if has_own else None, kv, layer, meta, scale, heads, window, softcap, sinks, batch_invariant
    )  # fmt: skip
    return out


def _attend(
    q: torch.Tensor,
    own: tuple[torch.Tensor, torch.Tensor] | None,
    kv: Kv,
    layer: int,
    meta: AttentionMetadata,
    scale: float,
    out: torch.Tensor,
    window: int | None,
    softcap: float,
    sinks: torch.Tensor | None,
    batch_invariant: bool,
) -> torch.Tensor:
    _check(q, kv, out, scale, window)
    num_rows, num_seqs = q.shape[0], meta.context_len.shape[0]
    if num_rows == 0:
        return out
    place = KvPlace.of(kv, layer)
    if batch_invariant:
        invariant_attention(q, place, meta, scale, out, window, softcap, sinks)
        return out
    if meta.max_query > 1:
        prefill(q, own, place, meta, scale, out, window, softcap, sinks)
    if num_rows < num_seqs * meta.max_query or meta.max_query == 1:
        decode(q, place, meta, scale, out, window, softcap, sinks)
    return out


def _check(q: torch.Tensor, kv: Kv, out: torch.Tensor, scale: float, window: int | None) -> None:
    num_heads, head_dim = q.shape[1:]
    num_kv_heads = kv.shape[3]
    if kv.shape[5] != head_dim:
        raise ValueError(f"queries have heads of {head_dim}, keys and values of {kv.shape[5]}")
    if head_dim > MOST_DIMS:
        raise ValueError(f"heads of {head_dim}: these kernels have room for {MOST_DIMS} dimensions")
    if num_heads % num_kv_heads:
        raise ValueError(f"{num_heads} query heads cannot share {num_kv_heads} KV heads: not a multiple")
    if out.shape != q.shape:
        raise ValueError(f"out is {tuple(out.shape)}: it must be {tuple(q.shape)}, as q is")
    for name, tensor in (("q", q), ("out", out)):
        if tensor.stride()[1:] != (head_dim, 1) and num_heads > 1:
            raise ValueError(f"{name} has strides {tensor.stride()}: the heads of a row must lie one after the other")
    if window is not None and window < 1:
        raise ValueError(f"window={window} must be at least 1, or None")
    if scale <= 0.0:
        raise ValueError(f"scale={scale} must be positive")
