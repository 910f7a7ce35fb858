"""Attention over paged keys and values (Kwon et al., PagedAttention, SOSP 2023), one sequence after the other."""

from __future__ import annotations

import torch

from octavo.kernels.metadata import AttentionMetadata
from octavo.kernels.quantized_kv import Kv
from octavo.kernels.reference.cache import read_kv, write_kv
from octavo.kernels.reference.norm import normalize
from octavo.kernels.reference.rotary import rotate


def _attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    positions: torch.Tensor,
    first: int,
    scale: float,
    window: int | None,
    softcap: float,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """One sequence: q [N, HQ, D] at ``positions`` [N] over float32 k, v [HK, L, D], the first key at ``first``."""
    num_queries, num_heads, head_dim = q.shape
    num_kv_heads, length = k.shape[0], k.shape[1]
    grouped = q.float().view(num_queries, num_kv_heads, num_heads // num_kv_heads, head_dim)
    scores = torch.einsum("nhgd,hld->hgnl", grouped, k) * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    keys = torch.arange(first, first + length, device=q.device)
    hidden = keys[None, :] > positions[:, None]
    if window is not None:
        hidden |= keys[None, :] <= positions[:, None] - window
    scores = scores.masked_fill(hidden, float("-inf"))
    if sinks is not None:
        sink = sinks.float().view(num_kv_heads, -1, 1, 1).expand(-1, -1, num_queries, 1)
        probabilities = torch.cat((scores, sink), dim=-1).softmax(-1)[..., :-1]
    else:
        probabilities = scores.softmax(-1)
    return torch.einsum("hgnl,hld->nhgd", probabilities, v).reshape(num_queries, num_heads, head_dim)


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

    Each sequence is gathered and computed by itself. ``batch_invariant`` computes each row by itself, so that a row's
    result does not depend on how many rows its sequence brought.
    """
    block_size = kv.shape[4]
    starts, contexts = meta.query_start.tolist(), meta.context_len.tolist()
    for s, context in enumerate(contexts):
        begin, end = starts[s], starts[s + 1]
        lowest = context - (end - begin)
        first_key = 0 if window is None else max(0, lowest - window + 1)
        first_block = first_key // block_size
        blocks = meta.block_tables[s, first_block : (context + block_size - 1) // block_size].long()
        base = first_block * block_size
        # [HK, blocks * block_size, D], cut to the keys that exist and are in sight
        k, v = (read_kv(kv, blocks, layer, which) for which in (0, 1))
        k, v = k[:, first_key - base : context - base], v[:, first_key - base : context - base]
        if not batch_invariant:
            positions = meta.positions[begin:end]
            out[begin:end] = _attend(q[begin:end], k, v, positions, first_key, scale, window, softcap, sinks).to(
                out.dtype
            )
            continue
        for row in range(begin, end):
            position = lowest + row - begin
            low = 0 if window is None else max(0, position - window + 1)
            seen = slice(low - first_key, position + 1 - first_key)
            out[row : row + 1] = _attend(
                q[row : row + 1],
                k[:, seen].contiguous(),
                v[:, seen].contiguous(),
                meta.positions[row : row + 1],
                low,
                scale,
                window,
                softcap,
                sinks,
            ).to(out.dtype)
    return out


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

    ``qkv`` is left as it was; other backends may overwrite it.
    """
    head_dim = kv.shape[5]
    q, k, v = qkv.view(len(qkv), -1, head_dim).split((num_heads, num_kv_heads, num_kv_heads), dim=1)
    q = q.float() if q_norm is None else normalize(q, q_norm, eps)
    k = k.float() if k_norm is None else normalize(k, k_norm, eps)
    write_kv(rotate(k, meta.positions, cos_sin), v, kv, layer, meta.slots)
    q = rotate(q, meta.positions, cos_sin)
    heads = out.view(len(out), num_heads, head_dim)
    paged_attention(q, kv, layer, meta, scale, heads, window, softcap, sinks, batch_invariant)
    return out
