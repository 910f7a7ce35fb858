"""Paged attention for sequences that bring many tokens at once, prefilled whole or in chunks (Dao, FlashAttention-2,
2023, on paged memory: Kwon et al., SOSP 2023).

A program takes a tile of rows: a run of a sequence's tokens, each with all query heads that share the KV head, so that
a key is read once for all of them. A chunk's own keys and values come from the batch's contiguous rows where the caller
has them; only what was stored by earlier steps is read through the block table. Tiles of keys that every row sees are
computed without a mask, apart from those on the diagonal. The grid follows from the number of rows and sequences.

Floor: ``4 * HQ * D * sum(q * context + q (q + 1) / 2)`` FLOP for q new tokens after ``context`` others.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from octavo.kernels.metadata import AttentionMetadata
from octavo.kernels.triton.cache import KvPlace
from octavo.kernels.triton.launch import architecture, table_for
from octavo.kernels.triton.online_softmax import LOG2E, attend_tile, finish
from octavo.kernels.triton.pages import load_rows, load_tile

_SEQS = 256  # sequences looked at together


class PrefillLaunch(NamedTuple):
    """How the kernel is launched."""

    rows: int  #: of a tile: tokens times the query heads that share a KV head
    tile: int  #: keys at a time
    warps: int
    stages: int


@triton.jit
def find_rows(query_start, num_seqs, tile, TOKENS: tl.constexpr, SEQS: tl.constexpr):
    """Whose the batch's ``tile``-th tile of TOKENS tokens is: the sequence, its first row, how many rows it has, and
    the tile's first token among them (their number or more: the tile is empty). Of a sequence's tiles the first has
    the number ``query_start // TOKENS + seq``, which leaves room for all."""
    seq = -1
    for first in range(0, num_seqs, SEQS):
        seqs = first + tl.arange(0, SEQS)
        here = seqs < num_seqs
        begins = tl.load(query_start + seqs, mask=here, other=0) // TOKENS + seqs
        seq += tl.sum((here & (begins <= tile)).to(tl.int32))
    row = tl.load(query_start + seq)
    return seq, row, tl.load(query_start + seq + 1) - row, (tile - (row // TOKENS + seq)) * TOKENS


@triton.jit
def _attend_pages(
    query,
    acc,
    peak,
    total,
    positions,
    low,
    high,
    of_head,
    of_scales,
    table,
    dims,
    kv_page,
    kv_which,
    scale_page,
    scale_which,
    window,
    multiplier,
    inner,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
    MASKED: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    QUANTIZED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Keys at positions ``low`` to ``high``, from blocks; without MASKED whole tiles that every row sees."""
    for start in range(low, high, TILE):
        keys = start + tl.arange(0, TILE)
        here = keys < high
        visible = here[None, :] & (keys[None, :] <= positions[:, None])
        if HAS_WINDOW:
            visible &= keys[None, :] > positions[:, None] - window
        k, v, k_scales, v_scales = load_tile(
            of_head, of_scales, table, keys, here, dims, kv_page, kv_which, scale_page, scale_which,
            BLOCK_SIZE, HEAD_DIM, MASKED, QUANTIZED,
        )  # fmt: skip
        acc, peak, total = attend_tile(
            query, k, v, k_scales, v_scales, visible, acc, peak, total, multiplier, inner,
            MASKED, HAS_SOFTCAP, QUANTIZED, PRECISION,
        )  # fmt: skip
    return acc, peak, total


@triton.jit
def _attend_own(
    query,
    acc,
    peak,
    total,
    tokens,
    low,
    high,
    k_own,
    v_own,
    own_row,
    dims,
    window,
    multiplier,
    inner,
    HEAD_DIM: tl.constexpr,
    TILE: tl.constexpr,
    MASKED: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The sequence's new keys ``low`` to ``high``, from the batch's rows; without MASKED whole tiles that every row
    sees. ``k_own`` and ``v_own`` point at the first one's."""
    for start in range(low, high, TILE):
        keys = start + tl.arange(0, TILE)
        here = keys < high
        visible = here[None, :] & (keys[None, :] <= tokens[:, None])
        if HAS_WINDOW:
            visible &= keys[None, :] > tokens[:, None] - window
        rows = keys.to(tl.int64) * own_row
        k = load_rows(k_own + rows, here, dims, HEAD_DIM, MASKED).T
        v = load_rows(v_own + rows, here, dims, HEAD_DIM, MASKED)
        acc, peak, total = attend_tile(
            query, k, v, None, None, visible, acc, peak, total, multiplier, inner,
            MASKED, HAS_SOFTCAP, False, PRECISION,
        )  # fmt: skip
    return acc, peak, total


@triton.jit(
    # what differs from batch to batch: no kernel is compiled anew for it
    do_not_specialize=["num_seqs", "window", "table_row"],
    do_not_specialize_on_alignment=["query_start", "context_len", "tables", "sinks"],
)
def _prefill_kernel(
    q,
    k_own,
    v_own,
    kv,
    scales,
    out,
    query_start,
    context_len,
    tables,
    sinks,
    num_seqs,
    window,
    multiplier,
    inner,
    q_row,
    own_row,
    out_row,
    table_row,
    kv_page,
    kv_layer,
    kv_head,
    scale_page,
    scale_layer,
    scale_head,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIMS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
    SEQS: tl.constexpr,
    HAS_OWN: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    QUANTIZED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Program (KV head, tile of rows), the last tiles first, for they see most. Sequences of one row are left alone."""
    TOKENS: tl.constexpr = ROWS // GROUP
    head = tl.program_id(0)
    seq, row, new, first = find_rows(
        query_start, num_seqs, tl.num_programs(1) - 1 - tl.program_id(1), TOKENS, SEQS
    )  # fmt: skip
    if (first >= new) | (new == 1):
        return
    stored = tl.load(context_len + seq) - new  # keys of earlier steps
    rows, dims = tl.arange(0, ROWS), tl.arange(0, DIMS)
    tokens = first + rows // GROUP
    heads = head * GROUP + rows % GROUP
    end = tl.minimum(first + TOKENS, new)
    is_row = tokens < end
    is_item = is_row[:, None] & (dims < HEAD_DIM)[None, :]
    flat = (row + tokens).to(tl.int64)[:, None]
    items = heads[:, None] * HEAD_DIM + dims[None, :]
    query = tl.load(q + flat * q_row + items, mask=is_item, other=0.0)
    acc = tl.zeros((ROWS, DIMS), tl.float32)
    peak = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)

    table = tables + seq.to(tl.int64) * table_row
    of_head = kv + kv_layer + head * kv_head
    kv_which = tl.num_programs(0) * kv_head
    of_scales = scales
    scale_which = 0
    if QUANTIZED:
        of_scales += scale_layer + head * scale_head
        scale_which = tl.num_programs(0) * scale_head
    positions = stored + tokens
    low = 0
    if HAS_WINDOW:
        low = tl.maximum(stored + first - window + 1, 0)
    high = stored + end
    clear = stored + first + 1  # what is before it, every row sees
    if HAS_OWN:
        high = stored
        clear = stored
    if not HAS_WINDOW:
        clear = clear // TILE * TILE
        acc, peak, total = _attend_pages(
            query, acc, peak, total, positions, 0, clear, of_head, of_scales, table, dims, kv_page, kv_which,
            scale_page, scale_which, window, multiplier, inner,
            HEAD_DIM, BLOCK_SIZE, TILE, False, False, HAS_SOFTCAP, QUANTIZED, PRECISION,
        )  # fmt: skip
        low = clear
    acc, peak, total = _attend_pages(
        query, acc, peak, total, positions, low, high, of_head, of_scales, table, dims, kv_page, kv_which,
        scale_page, scale_which, window, multiplier, inner,
        HEAD_DIM, BLOCK_SIZE, TILE, True, HAS_WINDOW, HAS_SOFTCAP, QUANTIZED, PRECISION,
    )  # fmt: skip
    if HAS_OWN:
        mine = row.to(tl.int64) * own_row + head * HEAD_DIM
        own_low = 0
        if HAS_WINDOW:
            own_low = tl.maximum(first - window + 1, 0)
        else:
            own_low = (first + 1) // TILE * TILE
            acc, peak, total = _attend_own(
                query, acc, peak, total, tokens, 0, own_low, k_own + mine, v_own + mine, own_row, dims, window,
                multiplier, inner, HEAD_DIM, TILE, False, False, HAS_SOFTCAP, PRECISION,
            )  # fmt: skip
        acc, peak, total = _attend_own(
            query, acc, peak, total, tokens, own_low, end, k_own + mine, v_own + mine, own_row, dims, window,
            multiplier, inner, HEAD_DIM, TILE, True, HAS_WINDOW, HAS_SOFTCAP, PRECISION,
        )  # fmt: skip
    mean = finish(acc, peak, total, sinks, heads, is_row, HAS_SINKS)
    tl.store(out + flat * out_row + items, mean.to(out.dtype.element_ty), mask=is_item)


class PrefillLaunches(NamedTuple):
    """The launches of one head size: registers are short where there is more to do to a score."""

    plain: PrefillLaunch
    masked: PrefillLaunch  #: with a window, softcap or sinks
    quantized: PrefillLaunch  #: keys and values are int8

    @classmethod
    def alike(cls, launch: PrefillLaunch) -> PrefillLaunches:
        """One launch serves all."""
        return cls(launch, launch, launch)


_WIDE, _NARROW = (PrefillLaunch(rows=128, tile=tile, warps=8, stages=stages) for tile, stages in ((64, 3), (32, 2)))
_FLOAT32 = {
    64: PrefillLaunches.alike(PrefillLaunch(rows=32, tile=32, warps=8, stages=2)),
    128: PrefillLaunches.alike(PrefillLaunch(rows=32, tile=16, warps=8, stages=2)),
    256: PrefillLaunches.alike(PrefillLaunch(rows=32, tile=16, warps=8, stages=2)),
}
_AMPERE = {
    64: PrefillLaunches.alike(_WIDE),
    128: PrefillLaunches(_WIDE, _NARROW, _NARROW),
    256: PrefillLaunches.alike(PrefillLaunch(rows=64, tile=32, warps=8, stages=2))._replace(
        quantized=PrefillLaunch(rows=32, tile=32, warps=8, stages=2)
    ),
}
_HOPPER = {
    64: PrefillLaunches.alike(_WIDE),
    128: PrefillLaunches.alike(_WIDE),
    256: PrefillLaunches.alike(PrefillLaunch(rows=64, tile=64, warps=8, stages=2)),
}
_LAUNCHES = {80: {2: _AMPERE, 4: _FLOAT32}, 89: {2: _AMPERE, 4: _FLOAT32}, 90: {2: _HOPPER, 4: _FLOAT32}}
"""By architecture, bytes of an item, and dimensions."""


def launch_shape(
    device: torch.device, head_dim: int, group: int, dtype: torch.dtype, *, masked: bool, quantized: bool
) -> PrefillLaunch:
    """The launch by architecture, head size, bytes of an item, and what is done to a score."""
    table = table_for(architecture(device), _LAUNCHES)[dtype.itemsize]
    launches = table[max(triton.next_power_of_2(head_dim), 64)]
    launch = launches.quantized if quantized else launches.masked if masked else launches.plain
    return launch if launch.rows >= group else launch._replace(rows=triton.next_power_of_2(group))


def prefill(
    q: torch.Tensor,
    own: tuple[torch.Tensor, torch.Tensor] | None,
    place: KvPlace,
    meta: AttentionMetadata,
    scale: float,
    out: torch.Tensor,
    window: int | None,
    softcap: float,
    sinks: torch.Tensor | None,
) -> None:
    """Attention of those sequences that bring two rows or more; other rows of ``out`` are left alone.

    Args:
        q: ``[T, HQ, D]``, heads of a row one after the other.
        own: the batch's keys and values ``[T, HK, D]`` as they were stored, alike in strides, the heads of a row one
            after the other; None: they are read from their blocks.
        place: of the layer's keys and values.
        meta: the batch.
        scale: of scores.
        out: ``[T, HQ, D]``, heads of a row one after the other.
        window: tokens in sight, or None.
        softcap: or 0.
        sinks: ``[HQ]``, or None.
    """
    num_rows, num_heads, head_dim = q.shape
    num_seqs = meta.context_len.shape[0]
    num_kv_heads = place.values.shape[3]
    group = num_heads // num_kv_heads
    launch = launch_shape(
        q.device,
        head_dim,
        group,
        q.dtype,
        masked=window is not None or softcap != 0.0 or sinks is not None,
        quantized=place.scales is not None,
    )
    k_own, v_own = own or (None, None)
    _prefill_kernel[(num_kv_heads, num_rows // (launch.rows // group) + num_seqs)](
        q,
        k_own,
        v_own,
        place.values,
        place.scales,
        out,
        meta.query_start,
        meta.context_len,
        meta.block_tables,
        sinks,
        num_seqs,
        window or 0,
        (softcap if softcap else scale) * LOG2E.value,
        scale / softcap if softcap else 0.0,
        q.stride(0),
        k_own.stride(0) if k_own is not None else 0,
        out.stride(0),
        meta.block_tables.stride(0),
        *place[2:],
        GROUP=group,
        ROWS=launch.rows,
        HEAD_DIM=head_dim,
        DIMS=max(16, triton.next_power_of_2(head_dim)),
        BLOCK_SIZE=place.values.shape[4],
        TILE=launch.tile,
        SEQS=_SEQS,
        HAS_OWN=own is not None,
        HAS_WINDOW=window is not None,
        HAS_SOFTCAP=softcap != 0.0,
        HAS_SINKS=sinks is not None,
        QUANTIZED=place.scales is not None,
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        num_warps=launch.warps,
        num_stages=launch.stages,
    )
