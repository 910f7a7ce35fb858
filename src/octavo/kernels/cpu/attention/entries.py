"""What the rest of the world calls."""

from __future__ import annotations

import ctypes

import torch

from octavo.kernels.cpu import checks
from octavo.kernels.cpu.attention.attend import attend
from octavo.kernels.cpu.attention.plan import PLANS, SMALL_WRITE, Needs, Plan
from octavo.kernels.cpu.attention.words import (
    DECODES,
    MODE,
    PAGE,
    SCHEDULE,
    SHARED,
    TILES,
    WRITE,
    WRITE_ROWS,
    pack,
    pack_plan,
)
from octavo.kernels.cpu.emitter import F32, ITEM_SIZE
from octavo.kernels.cpu.launch import (
    ARGUMENTS,
    TASK,
    WORKER,
    RecordedCall,
    num_threads,
    run,
)
from octavo.kernels.metadata import AttentionMetadata
from octavo.kernels.quantized_kv import Kv


def _attention(
    needs: Needs,
    plan: Plan,
    q: int,
    q_stride: int,
    out: checks.Rows,
    k: int,
    v: int,
    norms: tuple[int, int, int],
    eps: float,
    cos_sin: int,
    rotary: int,
    kv: int,
    scale: float,
    softcap: float,
    sinks: torch.Tensor | None,
    num_heads: int,
) -> None:
    """Both entries; k is 0 where keys and values are in their blocks already."""
    sinks_dtype, sinks_address = (F32, 0) if sinks is None else checks.weight("sinks", sinks, num_heads)
    arguments = ARGUMENTS.here
    words = arguments.words
    threads = max(plan.threads, plan.write_threads)
    memory = arguments.scratch(plan.shared + threads * plan.stride)
    if plan.counters:
        ctypes.memset(memory, 0, plan.counters)
    batch = plan.batch
    q_norm, k_norm, norm_dtype = norms
    writes_first = k != 0 and plan.mode == TILES
    pack(
        words, 0, 0, 0, -(-batch.num_rows // WRITE_ROWS) if writes_first else plan.tasks, memory + plan.shared,
        plan.stride, WRITE if writes_first else plan.mode, q, q_stride, out[4], out[3], k, q_stride, v, q_stride, kv,
        batch.num_rows, out[0], sinks_address, sinks_dtype, q_norm, k_norm, norm_dtype, cos_sin, rotary, batch.slots,
        scale, softcap, eps,
    )  # fmt: skip
    arguments.bytes[PAGE : PAGE + len(plan.words)] = plan.words
    words[SHARED // 8] = memory
    if arguments.recorded is not None:
        if plan.mode != DECODES:
            raise ValueError("only attention of batches in which every sequence brings one row can be recorded")
        arguments.recorded.append(RecordedCall(attend, arguments.bytes.tobytes(), needs))
        return
    if plan.mode == DECODES:
        run(attend, plan.threads, arguments)
        return
    if writes_first:
        run(attend, plan.write_threads, arguments)
        words[TASK // 8] = words[WORKER // 8] = 0
    words[MODE // 8] = SCHEDULE
    run(attend, 1, arguments)
    words[MODE // 8] = TILES
    run(attend, plan.threads, arguments)


def _layer(cache: checks.Cache, layer: int) -> int:
    """The address of a layer's first key."""
    if not 0 <= layer < cache.num_layers:
        raise ValueError(f"layer={layer}: kv holds layers 0 to {cache.num_layers - 1}")
    return cache.address + layer * 2 * cache.num_kv_heads * cache.head


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

    Args:
        q: rows may be strided; the heads of a row lie one after the other.
        kv: :meth:`KvLayout.view`'s [num_blocks, num_layers, 2, HK, block_size, D].
        layer: which of its layers.
        meta: the flat batch. Its tensors must not be replaced while it is in use; what is in them may be.
        scale: what scores are multiplied by.
        out: of q's dtype; rows may be strided.
        window: a token sees itself and the ``window - 1`` before it.
        softcap: scores become ``softcap * tanh(score / softcap)``; 0 leaves them.
        sinks: [HQ], one more logit in each head's softmax denominator.
        batch_invariant: a row's bits depend on its own position only, not on how many rows its sequence brought.

    Raises:
        ValueError: a tensor's shape, dtype or layout is not as above.
    """
    queries, target, cache = checks.heads("q", q), checks.heads("out", out), checks.cache(kv)
    num_heads = q.shape[1]
    needs = Needs(meta, cache, num_heads, window, batch_invariant)
    plan = PLANS.find(needs)
    checks.alike("q", queries, "out", target)
    if queries[1] != plan.batch.num_rows or q.shape[2] != cache.dim:
        raise ValueError(
            f"q is {tuple(q.shape)}: meta describes {plan.batch.num_rows} rows, and kv holds heads of {cache.dim}"
        )
    _attention(
        needs, plan, queries[4], queries[3], target, 0, 0, (0, 0, F32), 0.0, 0, 0, _layer(cache, layer), scale,
        softcap, sinks, num_heads,
    )  # fmt: skip
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

    Norm and rotation are computed in float32 and not rounded in between; keys and values are rounded to the cache's
    dtype, or quantised, and read back from there, a token's own too. Arguments are those of :func:`paged_attention`,
    :func:`rotary_embedding` and :func:`rms_norm`; the norm's weights are [D] or None, both of one dtype. ``qkv`` is
    left as it was.

    Raises:
        ValueError: a tensor's shape, dtype or layout is not as described.
    """
    dtype, rows, width, stride, address = checks.matrix("qkv", qkv)
    target, cache = checks.matrix("out", out), checks.cache(kv)
    needs = Needs(meta, cache, num_heads, window, batch_invariant)
    plan = PLANS.find(needs)
    dim = cache.dim
    if (
        width != (num_heads + 2 * num_kv_heads) * dim
        or rows != plan.batch.num_rows
        or target[:3] != (dtype, rows, num_heads * dim)
        or num_kv_heads != cache.num_kv_heads
    ):
        raise ValueError(
            f"qkv is {tuple(qkv.shape)} of {qkv.dtype}, out {tuple(out.shape)} of {out.dtype}: for "
            f"{plan.batch.num_rows} rows (meta), {num_heads} query heads, {num_kv_heads} KV heads and kv "
            f"{tuple(kv.shape)} they must be [T, (HQ + 2 HK) D] and [T, HQ D] of one dtype"
        )
    norm_dtype, q_weight, k_weight = F32, 0, 0
    if q_norm is not None:
        norm_dtype, q_weight = checks.weight("q_norm", q_norm, dim)
    if k_norm is not None:
        k_dtype, k_weight = checks.weight("k_norm", k_norm, dim)
        if q_norm is not None and k_dtype != norm_dtype:
            raise ValueError(f"q_norm is {q_norm.dtype} and k_norm {k_norm.dtype}: they must be the same")
        norm_dtype = k_dtype
    rotary = checks.angles(cos_sin)
    if rotary > dim:
        raise ValueError(f"cos_sin is {tuple(cos_sin.shape)}: it rotates more than the {dim} dimensions of a head")
    k = address + num_heads * dim * ITEM_SIZE[dtype]
    v = k + num_kv_heads * dim * ITEM_SIZE[dtype]
    _attention(
        needs, plan, address, stride, target, k, v, (q_weight, k_weight, norm_dtype), eps, cos_sin.data_ptr(),
        rotary, _layer(cache, layer), scale, softcap, sinks, num_heads,
    )  # fmt: skip
    return out


def write_kv(k: torch.Tensor, v: torch.Tensor, kv: Kv, layer: int, slots: torch.Tensor) -> None:
    """Store row t of k and v [T, HK, D] in slot ``slots[t]`` (block id * block_size + offset) of ``layer``.

    Rows of k and v may be strided; the heads of a row lie one after the other.

    Raises:
        ValueError: a tensor's shape, dtype or layout is not as described.
    """
    keys, values, cache = checks.heads("k", k), checks.heads("v", v), checks.cache(kv)
    checks.alike("k", keys, "v", values)
    dtype, rows, _, k_stride, k_address = keys
    kv_heads, dim = cache.num_kv_heads, cache.dim
    if k.shape[1:] != (kv_heads, dim):
        raise ValueError(f"k is {tuple(k.shape)}: kv holds {kv_heads} heads of {dim}")
    address = checks.vector("slots", slots, torch.int64, rows)
    threads = num_threads() if rows * kv_heads * dim > SMALL_WRITE else 1
    stride = 12 * dim + 127 & -64
    arguments = ARGUMENTS.here
    pack(
        arguments.words, 0, 0, 0, -(-rows // WRITE_ROWS), arguments.scratch(threads * stride), stride,
        WRITE, 0, 0, 0, 0, k_address, k_stride, values[4], values[3], _layer(cache, layer), rows, dtype,
        0, F32, 0, 0, F32, 0, 0, address, 0.0, 0.0, 0.0,
    )  # fmt: skip
    words = pack_plan.pack(
        cache.page, cache.head, kv_heads * cache.head, cache.scales, cache.block_size, cache.dtype, kv_heads, dim,
        *[0] * 11,
    )  # fmt: skip
    arguments.bytes[PAGE : PAGE + len(words)] = words
    run(attend, threads, arguments)
