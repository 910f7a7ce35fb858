"""Paged attention whose rows do not depend on their company, to the bit.

A row's result is the same whether its token was prefilled, came in a chunk or was decoded. Three things see to it:

- one kernel with one launch shape computes every row, and a row's arithmetic stays in its row of the tile;
- keys come from their blocks, in tiles that start at multiples of ``TILE``. A tile that a row sees nothing of changes
  no bit of it: its weights are 0, and what was there is multiplied by 1;
- contexts are cut at multiples of ``SPLIT`` keys, each part has a softmax of its own, and parts are joined in order by
  operations that no compiler fuses otherwise. So one program may do all parts, or many one each and a second kernel
  joins: the bits are the same. Which it is follows from shapes.

(Thinking Machines, "Defeating nondeterminism in LLM inference", 2025, fixes the size of splits for the same reason.)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from octavo.kernels.metadata import AttentionMetadata
from octavo.kernels.triton.cache import KvPlace
from octavo.kernels.triton.launch import registers
from octavo.kernels.triton.online_softmax import LOG2E, attend_tile, finish, merge
from octavo.kernels.triton.pages import load_tile
from octavo.kernels.triton.prefill import find_rows

SPLIT = 512
"""Contexts are cut at multiples of so many keys."""

_SEQS = 256  # sequences looked at together
_SMALL = ["query_start", "context_len", "tables", "sinks"]
"""Arguments whose alignment gains nothing: no kernel is compiled anew for it."""

_MOST_ROOM = 2**24
"""Items of float32 that parts may take: beyond, one program does all parts of a row."""


class InvariantLaunch(NamedTuple):
    """How the kernel is launched, for every batch."""

    rows: int  #: of a tile: tokens times the query heads that share a KV head
    tile: int  #: keys at a time; divides SPLIT
    warps: int
    stages: int


@triton.jit
def _attend_part(
    query,
    positions,
    low,
    start,
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
    HAS_WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    QUANTIZED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The softmax over keys ``start`` (a multiple of TILE) to ``high``; those below ``low`` no row sees."""
    acc = tl.zeros((query.shape[0], query.shape[1]), tl.float32)
    peak = tl.full((query.shape[0],), float("-inf"), tl.float32)
    total = tl.zeros((query.shape[0],), tl.float32)
    for first in range(start, high, TILE):
        keys = first + tl.arange(0, TILE)
        here = (keys >= low) & (keys < high)
        visible = here[None, :] & (keys[None, :] <= positions[:, None])
        if HAS_WINDOW:
            visible &= keys[None, :] > positions[:, None] - window
        k, v, k_scales, v_scales = load_tile(
            of_head, of_scales, table, keys, here, dims, kv_page, kv_which, scale_page, scale_which,
            BLOCK_SIZE, HEAD_DIM, True, QUANTIZED,
        )  # fmt: skip
        acc, peak, total = attend_tile(
            query, k, v, k_scales, v_scales, visible, acc, peak, total, multiplier, inner,
            True, HAS_SOFTCAP, QUANTIZED, PRECISION,
        )  # fmt: skip
    return acc, peak, total


@triton.jit(do_not_specialize=["num_seqs", "splits_each", "window", "table_row"], do_not_specialize_on_alignment=_SMALL)
def _invariant_kernel(
    q,
    kv,
    scales,
    out,
    parts,
    sums,
    query_start,
    context_len,
    tables,
    sinks,
    num_seqs,
    splits_each,
    window,
    multiplier,
    inner,
    q_row,
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
    SPLIT: tl.constexpr,
    SEQS: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    QUANTIZED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Program (KV head, tile of rows, run of ``splits_each`` splits). Where there is one run it writes the result,
    otherwise ``parts`` [T, runs, HQ, HEAD_DIM] and ``sums`` [T, runs, HQ, 2] (peak and total)."""
    TOKENS: tl.constexpr = ROWS // GROUP
    head, run, runs = tl.program_id(0), tl.program_id(2), tl.num_programs(2)
    seq, row, new, first = find_rows(
        query_start, num_seqs, tl.num_programs(1) - 1 - tl.program_id(1), TOKENS, SEQS
    )  # fmt: skip
    if first >= new:
        return
    stored = tl.load(context_len + seq) - new  # -1 in a row that fills up
    rows, dims = tl.arange(0, ROWS), tl.arange(0, DIMS)
    tokens = first + rows // GROUP
    heads = head * GROUP + rows % GROUP
    end = tl.minimum(first + TOKENS, new)
    is_row = tokens < end
    is_item = is_row[:, None] & (dims < HEAD_DIM)[None, :]
    flat = (row + tokens).to(tl.int64)
    items = heads[:, None] * HEAD_DIM + dims[None, :]
    query = tl.load(q + flat[:, None] * q_row + items, mask=is_item, other=0.0)
    table = tables + seq.to(tl.int64) * table_row
    of_head = kv + kv_layer + head * kv_head
    kv_which = tl.num_programs(0) * kv_head
    of_scales = scales
    scale_which = 0
    if QUANTIZED:
        of_scales += scale_layer + head * scale_head
        scale_which = tl.num_programs(0) * scale_head
    low = 0
    if HAS_WINDOW:
        low = tl.maximum(stored + first - window + 1, 0)
    high = stored + end
    begin = tl.maximum(run * splits_each, low // SPLIT)
    acc = tl.zeros((ROWS, DIMS), tl.float32)
    peak = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    for split in range(begin, tl.minimum((run + 1) * splits_each, tl.cdiv(high, SPLIT))):
        part, part_peak, part_total = _attend_part(
            query, stored + tokens, low, tl.maximum(split * SPLIT, low // TILE * TILE),
            tl.minimum((split + 1) * SPLIT, high), of_head, of_scales, table, dims, kv_page, kv_which,
            scale_page, scale_which, window, multiplier, inner,
            HEAD_DIM, BLOCK_SIZE, TILE, HAS_WINDOW, HAS_SOFTCAP, QUANTIZED, PRECISION,
        )  # fmt: skip
        acc, peak, total = merge(acc, peak, total, part, part_peak, part_total)
    if runs == 1:
        mean = finish(acc, peak, total, sinks, heads, is_row, HAS_SINKS)
        tl.store(out + flat[:, None] * out_row + items, mean.to(out.dtype.element_ty), mask=is_item)
    else:
        mine = (flat * runs + run) * tl.num_programs(0) * GROUP
        tl.store(parts + mine[:, None] * HEAD_DIM + items, acc, mask=is_item)
        tl.store(sums + 2 * (mine + heads), peak, mask=is_row)
        tl.store(sums + 2 * (mine + heads) + 1, total, mask=is_row)


@triton.jit
def find_owner(query_start, num_seqs, row, SEQS: tl.constexpr):
    """Whose the batch's row is."""
    seq = -1
    for first in range(0, num_seqs, SEQS):
        seqs = first + tl.arange(0, SEQS)
        here = seqs < num_seqs
        seq += tl.sum((here & (tl.load(query_start + seqs, mask=here, other=0) <= row)).to(tl.int32))
    return seq


@triton.jit(do_not_specialize=["num_seqs", "runs", "window"], do_not_specialize_on_alignment=_SMALL)
def _join_kernel(
    parts,
    sums,
    out,
    query_start,
    context_len,
    sinks,
    num_seqs,
    runs,
    window,
    out_row,
    HEAD_DIM: tl.constexpr,
    DIMS: tl.constexpr,
    SPLIT: tl.constexpr,
    SEQS: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SINKS: tl.constexpr,
):
    """Program (query head, row): joins the row's parts, each of one split, in order."""
    head, row = tl.program_id(0), tl.program_id(1)
    seq = find_owner(query_start, num_seqs, row, SEQS)
    position = tl.load(context_len + seq) - tl.load(query_start + seq + 1) + row
    begin = 0
    if HAS_WINDOW:
        begin = tl.maximum(position - window + 1, 0) // SPLIT
    dims = tl.arange(0, DIMS)
    is_dim = (dims < HEAD_DIM)[None, :]
    one = tl.arange(0, 1)
    acc = tl.zeros((1, DIMS), tl.float32)
    peak = tl.full((1,), float("-inf"), tl.float32)
    total = tl.zeros((1,), tl.float32)
    for split in range(begin, tl.cdiv(position + 1, SPLIT)):
        mine = (row.to(tl.int64) * runs + split) * tl.num_programs(0) + head
        part = tl.load(parts + mine * HEAD_DIM + dims[None, :], mask=is_dim, other=0.0)
        part_peak, part_total = tl.load(sums + 2 * mine + one), tl.load(sums + 2 * mine + 1 + one)
        acc, peak, total = merge(acc, peak, total, part, part_peak, part_total)
    mean = finish(acc, peak, total, sinks, head + one, one == 0, HAS_SINKS)
    place = out + row.to(tl.int64) * out_row + head * HEAD_DIM + dims
    tl.store(place[None, :], mean.to(out.dtype.element_ty), mask=is_dim)


_LAUNCHES = {
    2: {
        64: InvariantLaunch(rows=32, tile=32, warps=4, stages=2),
        128: InvariantLaunch(rows=32, tile=32, warps=8, stages=2),
        256: InvariantLaunch(rows=32, tile=32, warps=8, stages=2),
    },
    4: {
        64: InvariantLaunch(rows=32, tile=16, warps=8, stages=2),
        128: InvariantLaunch(rows=32, tile=16, warps=8, stages=2),
        256: InvariantLaunch(rows=16, tile=16, warps=8, stages=1),
    },
}
"""By bytes of an item, and dimensions."""


def launch_shape(head_dim: int, group: int, dtype: torch.dtype) -> InvariantLaunch:
    """The one launch for a model, whatever the GPU."""
    launch = _LAUNCHES[dtype.itemsize][max(triton.next_power_of_2(head_dim), 64)]
    return launch if launch.rows >= group else launch._replace(rows=triton.next_power_of_2(group))


def invariant_attention(
    q: torch.Tensor,
    place: KvPlace,
    meta: AttentionMetadata,
    scale: float,
    out: torch.Tensor,
    window: int | None,
    softcap: float,
    sinks: torch.Tensor | None,
) -> None:
    """Attention of all rows of the batch, as :func:`octavo.kernels.triton.attention.paged_attention` has it.

    Room for parts comes from torch's allocator, and so inside a capture from the graph's own pool.
    """
    num_rows, num_heads, head_dim = q.shape
    num_seqs = meta.context_len.shape[0]
    num_kv_heads = place.values.shape[3]
    group = num_heads // num_kv_heads
    launch = launch_shape(head_dim, group, q.dtype)
    dims = max(16, triton.next_power_of_2(head_dim))
    splits = max(1, triton.cdiv(meta.block_tables.shape[1] * place.values.shape[4], SPLIT))
    splits_each = 1 if num_rows * splits * num_heads * (head_dim + 2) <= _MOST_ROOM else splits
    runs = triton.cdiv(splits, splits_each)
    items = num_rows * runs * num_heads if runs > 1 else 0
    room = torch.empty(items * (head_dim + 2), dtype=torch.float32, device=q.device)
    parts, sums = room.split((items * head_dim, 2 * items))
    _invariant_kernel[(num_kv_heads, num_rows // (launch.rows // group) + num_seqs, runs)](
        q,
        place.values,
        place.scales,
        out,
        parts,
        sums,
        meta.query_start,
        meta.context_len,
        meta.block_tables,
        sinks,
        num_seqs,
        splits_each,
        window or 0,
        (softcap if softcap else scale) * LOG2E.value,
        scale / softcap if softcap else 0.0,
        q.stride(0),
        out.stride(0),
        meta.block_tables.stride(0),
        *place[2:],
        GROUP=group,
        ROWS=launch.rows,
        HEAD_DIM=head_dim,
        DIMS=dims,
        BLOCK_SIZE=place.values.shape[4],
        TILE=launch.tile,
        SPLIT=SPLIT,
        SEQS=_SEQS,
        HAS_WINDOW=window is not None,
        HAS_SOFTCAP=softcap != 0.0,
        HAS_SINKS=sinks is not None,
        QUANTIZED=place.scales is not None,
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        num_warps=launch.warps,
        num_stages=launch.stages,
        maxnreg=registers(launch.warps),
    )
    if runs == 1:
        return
    _join_kernel[(num_heads, num_rows)](
        parts,
        sums,
        out,
        meta.query_start,
        meta.context_len,
        sinks,
        num_seqs,
        runs,
        window or 0,
        out.stride(0),
        HEAD_DIM=head_dim,
        DIMS=dims,
        SPLIT=SPLIT,
        SEQS=_SEQS,
        HAS_WINDOW=window is not None,
        HAS_SINKS=sinks is not None,
        num_warps=1,
    )
