"""Paged attention for sequences that bring one token (split-KV: Dao et al., Flash-Decoding, 2023).

All query heads that share a KV head are one tile of 16 rows (or more) for the tensor cores, so each key and value is
read once. A context is cut in pieces, a program each, whose softmaxes a second kernel joins. How long a piece is, the
programs work out themselves from the batch's lengths, as FlashInfer's plan does on the host (Ye et al., 2025): so that
the pieces fill the GPU once, or, where there are more sequences than it holds programs, so that none is longer than a
processor's fair share. There is no plan to prepare, nothing is read on the host, and the grid follows from the number
of sequences alone: a captured graph serves any lengths.

Floor: ``sum(context) * 4 * HK * D`` bytes for 16-bit keys and values; at D = 128 and a group of G query heads that is
G FLOP a byte, so memory decides.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from octavo.kernels.metadata import AttentionMetadata
from octavo.kernels.triton.cache import KvPlace
from octavo.kernels.triton.launch import architecture, num_processors, registers, table_for
from octavo.kernels.triton.online_softmax import LOG2E, attend_tile, finish, merge
from octavo.kernels.triton.pages import load_tile

UNIT = 128
"""Pieces are multiples of so many keys."""

_SEQS = 256  # lengths looked at together
_PIECES = 16  # pieces joined together


class DecodeLaunch(NamedTuple):
    """How the decode kernel is launched."""

    tile: int  #: keys at a time; divides UNIT
    warps: int
    stages: int
    resident: int  #: programs that a processor holds at once: registers and shared memory allow them (tests compile it)


@triton.jit
def _units(query_start, context_len, seqs, num_seqs, window, UNIT: tl.constexpr, HAS_WINDOW: tl.constexpr):
    """How many units of keys are read for each of ``seqs``: none where it brings more than one row, or is padding."""
    here = seqs < num_seqs
    rows = tl.load(query_start + seqs + 1, mask=here, other=0) - tl.load(query_start + seqs, mask=here, other=0)
    length = tl.load(context_len + seqs, mask=here, other=0)
    if HAS_WINDOW:
        length = tl.minimum(length, window)
    return tl.where(rows == 1, tl.cdiv(length, UNIT), 0)


@triton.jit
def _num_pieces(
    query_start, context_len, num_seqs, window, size, UNIT: tl.constexpr, HAS_WINDOW: tl.constexpr, SEQS: tl.constexpr
):
    """How many pieces of ``size`` units the batch has."""
    count = 0
    for first in range(0, num_seqs, SEQS):
        seqs = first + tl.arange(0, SEQS)
        units = _units(query_start, context_len, seqs, num_seqs, window, UNIT, HAS_WINDOW)
        count += tl.sum(tl.cdiv(units, size))
    return count


@triton.jit
def piece_size(
    query_start, context_len, num_seqs, window, slots, UNIT: tl.constexpr, HAS_WINDOW: tl.constexpr, SEQS: tl.constexpr
):
    """Units a piece: the fewest that make no more than ``slots`` pieces; where the sequences themselves are more, the
    share of each slot."""
    total = 0
    active = 0
    for first in range(0, num_seqs, SEQS):
        seqs = first + tl.arange(0, SEQS)
        units = _units(query_start, context_len, seqs, num_seqs, window, UNIT, HAS_WINDOW)
        total += tl.sum(units)
        active += tl.sum((units > 0).to(tl.int32))
    low = tl.maximum(tl.cdiv(total, slots), 1)
    if active <= slots:
        # sum(ceil(u / size)) <= (total - active) / size + active
        high = total
        if active < slots:
            high = tl.cdiv(total - active, slots - active)
        while low < high:
            size = (low + high) // 2
            if _num_pieces(query_start, context_len, num_seqs, window, size, UNIT, HAS_WINDOW, SEQS) <= slots:
                high = size
            else:
                low = size + 1
    return low


@triton.jit
def find_piece(
    query_start,
    context_len,
    num_seqs,
    window,
    size,
    piece,
    UNIT: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    SEQS: tl.constexpr,
):
    """Whose the batch's ``piece``-th piece is: the sequence (``num_seqs`` or more if there is no such piece), the
    number of its first piece, and how many it has."""
    seq = 0
    before = 0  # pieces of the sequences looked at
    start = 0  # pieces of those that end before this one
    count = 0
    for first in range(0, num_seqs, SEQS):
        seqs = first + tl.arange(0, SEQS)
        units = _units(query_start, context_len, seqs, num_seqs, window, UNIT, HAS_WINDOW)
        pieces = tl.cdiv(units, size)
        ends = before + tl.cumsum(pieces)
        passed = ends <= piece
        seq += tl.sum(passed.to(tl.int32))
        start = tl.maximum(start, tl.max(tl.where(passed, ends, 0)))
        count += tl.sum(tl.where((ends > piece) & (ends - pieces <= piece), pieces, 0))
        before += tl.sum(pieces)
    return seq, start, count


_SMALL = ["plan", "query_start", "context_len", "tables", "sinks"]


# what differs from batch to batch is not specialised: no kernel is compiled anew for it
@triton.jit(do_not_specialize=["num_seqs", "slots", "window", "table_row"], do_not_specialize_on_alignment=_SMALL)
def _decode_kernel(
    q,
    kv,
    scales,
    out,
    parts,
    sums,
    plan,
    query_start,
    context_len,
    tables,
    sinks,
    num_seqs,
    slots,
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
    UNIT: tl.constexpr,
    SEQS: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    QUANTIZED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Program (KV head, piece). A sequence of one piece is done here; of more, each leaves its ``parts`` [pieces, HQ,
    HEAD_DIM] and ``sums`` [pieces, HQ, 2] (peak and total). The first leaves ``plan`` [seqs, 2]: (itself, how many)."""
    head, piece = tl.program_id(0), tl.program_id(1)
    size = piece_size(query_start, context_len, num_seqs, window, slots, UNIT, HAS_WINDOW, SEQS)
    seq, start, count = find_piece(query_start, context_len, num_seqs, window, size, piece, UNIT, HAS_WINDOW, SEQS)
    if count == 0:
        return
    context = tl.load(context_len + seq)
    low = (piece - start) * size * UNIT
    high = low + size * UNIT
    if HAS_WINDOW:
        first = tl.maximum(context - window, 0)
        low += first
        high += first
    high = tl.minimum(high, context)
    row = tl.load(query_start + seq).to(tl.int64)

    rows, dims = tl.arange(0, ROWS), tl.arange(0, DIMS)
    is_row = rows < GROUP
    is_item = is_row[:, None] & (dims < HEAD_DIM)[None, :]
    heads = head * GROUP + rows
    items = heads[:, None] * HEAD_DIM + dims[None, :]
    query = tl.load(q + row * q_row + items, mask=is_item, other=0.0)
    table = tables + seq.to(tl.int64) * table_row
    of_head = kv + kv_layer + head * kv_head
    kv_which = tl.num_programs(0) * kv_head
    of_scales = scales
    scale_which = 0
    if QUANTIZED:
        of_scales += scale_layer + head * scale_head
        scale_which = tl.num_programs(0) * scale_head

    acc = tl.zeros((ROWS, DIMS), tl.float32)
    peak = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    for tile in range(low, high, TILE):
        keys = tile + tl.arange(0, TILE)
        here = keys < high
        k, v, k_scales, v_scales = load_tile(
            of_head, of_scales, table, keys, here, dims, kv_page, kv_which, scale_page, scale_which,
            BLOCK_SIZE, HEAD_DIM, True, QUANTIZED,
        )  # fmt: skip
        acc, peak, total = attend_tile(
            query, k, v, k_scales, v_scales, here[None, :], acc, peak, total, multiplier, inner,
            True, HAS_SOFTCAP, QUANTIZED, PRECISION,
        )  # fmt: skip

    if count == 1:
        mean = finish(acc, peak, total, sinks, heads, is_row, HAS_SINKS)
        tl.store(out + row * out_row + items, mean.to(out.dtype.element_ty), mask=is_item)
    else:
        mine = piece.to(tl.int64) * tl.num_programs(0) * GROUP
        tl.store(parts + mine * HEAD_DIM + items, acc, mask=is_item)
        tl.store(sums + 2 * (mine + heads), peak, mask=is_row)
        tl.store(sums + 2 * (mine + heads) + 1, total, mask=is_row)
    if (head == 0) & (piece == start):
        tl.store(plan + 2 * seq, start)
        tl.store(plan + 2 * seq + 1, count)


@triton.jit(do_not_specialize_on_alignment=_SMALL)
def _reduce_kernel(
    parts,
    sums,
    plan,
    out,
    query_start,
    context_len,
    sinks,
    out_row,
    HEAD_DIM: tl.constexpr,
    DIMS: tl.constexpr,
    PIECES: tl.constexpr,
    HAS_SINKS: tl.constexpr,
):
    """Program (query head, sequence): joins its pieces. What the decode kernel finished is left alone, and padding
    (a context of 0) gives zeros."""
    head, seq = tl.program_id(0), tl.program_id(1)
    row = tl.load(query_start + seq)
    if tl.load(query_start + seq + 1) - row != 1:
        return
    start = 0
    count = 0
    if tl.load(context_len + seq) > 0:
        start = tl.load(plan + 2 * seq)
        count = tl.load(plan + 2 * seq + 1)
    if count == 1:
        return
    dims = tl.arange(0, DIMS)
    is_dim = dims < HEAD_DIM
    acc = tl.zeros((1, DIMS), tl.float32)
    peak = tl.full((1,), float("-inf"), tl.float32)
    total = tl.zeros((1,), tl.float32)
    for first in range(0, count, PIECES):
        pieces = first + tl.arange(0, PIECES)
        here = pieces < count
        theirs = (start + pieces).to(tl.int64) * tl.num_programs(0) + head
        peaks = tl.load(sums + 2 * theirs, mask=here, other=float("-inf"))
        totals = tl.load(sums + 2 * theirs + 1, mask=here, other=0.0)
        some = tl.load(
            parts + theirs[:, None] * HEAD_DIM + dims[None, :], mask=here[:, None] & is_dim[None, :], other=0.0
        )
        highest = tl.max(peaks[None, :], 1)
        shares = tl.exp2(peaks - tl.where(highest == float("-inf"), 0.0, highest))
        acc, peak, total = merge(
            acc, peak, total, tl.sum(some * shares[:, None], 0)[None, :], highest, tl.sum((totals * shares)[None, :], 1)
        )
    one = tl.arange(0, 1)
    mean = finish(acc, peak, total, sinks, head + one, one == 0, HAS_SINKS)
    place = out + row.to(tl.int64) * out_row + head * HEAD_DIM + dims
    tl.store(place[None, :], mean.to(out.dtype.element_ty), mask=is_dim[None, :])


_TILES = {2: {64: 128, 128: 64, 256: 32}, 4: {64: 64, 128: 16, 256: 16}}
"""Keys at a time, by bytes of an item and dimensions: registers and shared memory leave no room for more."""

_RESIDENT = {80: (3, 2), 89: (2, 2), 90: (4, 2)}
"""Programs at once by architecture, and that for keys and values in int8: widened, they take more registers."""


def launch_shape(device: torch.device, head_dim: int, dtype: torch.dtype, quantized: bool) -> DecodeLaunch:
    """The decode kernel's launch by architecture, head size, bytes of an item, and whether keys and values are int8."""
    tile = _TILES[dtype.itemsize][max(triton.next_power_of_2(head_dim), 64)]
    return DecodeLaunch(tile, 4, 3, table_for(architecture(device), _RESIDENT)[quantized])


def num_slots(device: torch.device, launch: DecodeLaunch, num_kv_heads: int) -> int:
    """How many pieces the GPU computes at once: each is a program for every KV head."""
    return max(1, num_processors(device) * launch.resident // num_kv_heads)


def decode(
    q: torch.Tensor,
    place: KvPlace,
    meta: AttentionMetadata,
    scale: float,
    out: torch.Tensor,
    window: int | None,
    softcap: float,
    sinks: torch.Tensor | None,
) -> None:
    """Attention of those sequences that bring one row; other rows of ``out`` are left alone.

    Args:
        q: ``[T, HQ, D]``, heads of a row one after the other.
        place: of the layer's keys and values, the batch's own among them.
        meta: the batch. A sequence whose ``context_len`` is 0 is padding: its row of ``out`` becomes zeros.
        scale: of scores.
        out: ``[T, HQ, D]``, heads of a row one after the other.
        window: tokens in sight, or None.
        softcap: or 0.
        sinks: ``[HQ]``, or None.

    The room for pieces comes from torch's allocator, and so inside a capture from the graph's own pool.
    """
    num_seqs = meta.context_len.shape[0]
    num_heads, head_dim = q.shape[1:]
    num_kv_heads = place.values.shape[3]
    launch = launch_shape(q.device, head_dim, q.dtype, place.scales is not None)
    slots = num_slots(q.device, launch, num_kv_heads)
    # beyond the slots there are pieces only where the sequences themselves are more: see piece_size
    pieces = slots if num_seqs <= slots else num_seqs + slots
    room = torch.empty(pieces * num_heads * (head_dim + 2), dtype=torch.float32, device=q.device)
    parts, sums = room.split((pieces * num_heads * head_dim, 2 * pieces * num_heads))
    plan = torch.empty(2 * num_seqs, dtype=torch.int32, device=q.device)
    dims = max(16, triton.next_power_of_2(head_dim))
    group = num_heads // num_kv_heads
    _decode_kernel[(num_kv_heads, pieces)](
        q,
        place.values,
        place.scales,
        out,
        parts,
        sums,
        plan,
        meta.query_start,
        meta.context_len,
        meta.block_tables,
        sinks,
        num_seqs,
        slots,
        window or 0,
        (softcap if softcap else scale) * LOG2E.value,
        scale / softcap if softcap else 0.0,
        q.stride(0),
        out.stride(0),
        meta.block_tables.stride(0),
        *place[2:],
        GROUP=group,
        ROWS=max(16, triton.next_power_of_2(group)),
        HEAD_DIM=head_dim,
        DIMS=dims,
        BLOCK_SIZE=place.values.shape[4],
        TILE=launch.tile,
        UNIT=UNIT,
        SEQS=_SEQS,
        HAS_WINDOW=window is not None,
        HAS_SOFTCAP=softcap != 0.0,
        HAS_SINKS=sinks is not None,
        QUANTIZED=place.scales is not None,
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        num_warps=launch.warps,
        num_stages=launch.stages,
        maxnreg=registers(launch.warps, launch.resident),
    )
    _reduce_kernel[(num_heads, num_seqs)](
        parts,
        sums,
        plan,
        out,
        meta.query_start,
        meta.context_len,
        sinks,
        out.stride(0),
        HEAD_DIM=head_dim,
        DIMS=dims,
        PIECES=_PIECES,
        HAS_SINKS=sinks is not None,
        num_warps=1,
    )
