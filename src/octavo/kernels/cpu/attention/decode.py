"""Attention of a sequence that brings one token: its parts, and how they are joined."""

from __future__ import annotations

from octavo.kernels.cpu.attention.head_row import finish, prepare, visible, write
from octavo.kernels.cpu.attention.words import (
    BLOCK_SIZE,
    CONTEXT,
    DECODES,
    DIM,
    DTYPE,
    HEAD,
    HEADS,
    KEYS,
    KV,
    KV_DTYPE,
    KV_HEADS,
    MODE,
    NUM_SEQS,
    OUT,
    OUT_STRIDE,
    PAGE,
    PARTITION,
    PARTS,
    Q_NORM,
    Q_STRIDE,
    SCALE,
    SCALES,
    SHARED,
    SOFTCAP,
    TABLE_STRIDE,
    TABLES,
    VALUE_OFFSET,
    Q,
)
from octavo.kernels.cpu.elementwise import fill, multiply_row
from octavo.kernels.cpu.emitter import F32, INT8, ITEM_SIZE
from octavo.kernels.cpu.jit import device
from octavo.kernels.cpu.tiles import (
    MAX_GROUP,
    blend,
    dots,
    exponential,
    softmax,
    weighted_sum,
)
from octavo.kernels.cpu.words import copy_bytes, fetch_add, load_f32, load_f64, load_i32, load_i64, store_f32, store_i64

LEAD = 3
"""Blocks between the one that is worked on and the one that is asked for."""


@device
def scale_columns(rows: int, group: int, scales: int, count: int) -> None:
    """Multiply ``count`` columns of scores or weights, of ``group`` heads each, by the scales of their tokens."""
    for g in range(group):
        multiply_row(rows + 4 * g * PARTITION, scales, count)


@device
def attend_part(p: int, seq: int, head: int, low: int, high: int, q: int, scores: int, acc: int, state: int) -> None:
    """One part of a decode: keys ``low .. high - 1``. ``acc`` [group, dim] becomes the values summed by weight,
    ``state`` [group, 2] the largest score and the sum of weights."""
    dim, block_size, kv_dtype = load_i64(p + DIM), load_i64(p + BLOCK_SIZE), load_i64(p + KV_DTYPE)
    group = load_i64(p + HEADS) // load_i64(p + KV_HEADS)
    table = load_i64(p + TABLES) + seq * load_i64(p + TABLE_STRIDE)
    base, page = load_i64(p + KV) + head * load_i64(p + HEAD), load_i64(p + PAGE)
    line = dim * ITEM_SIZE[kv_dtype]
    softcap = load_f64(p + SOFTCAP)
    values = load_i64(p + VALUE_OFFSET)
    context = load_i32(load_i64(p + CONTEXT) + 4 * seq)
    # while a block is worked on, one further on is asked for: first keys, then values, then keys of the next part
    block, offset, last = low // block_size, low % block_size, (high - 1) // block_size
    first, j = block, low
    while j < high:
        count = min(block_size - offset, high - j)
        k = base + load_i32(table + 4 * block) * page + offset * line
        later = block + LEAD
        if later <= last:
            ahead = base + load_i32(table + 4 * later) * page
        else:
            ahead = base + load_i32(table + 4 * min(last, first + later - last - 1)) * page + values
        for g in range(0, group, MAX_GROUP):
            some = min(MAX_GROUP, group - g)
            place = scores + 4 * (g * PARTITION + j - low)
            dots(kv_dtype, q + 4 * g * dim, 4 * dim, some, k, count, dim, place, 4 * PARTITION, ahead)
        if kv_dtype == INT8:
            scales = base + load_i32(table + 4 * block) * page + load_i64(p + SCALES) + 4 * offset
            scale_columns(scores + 4 * (j - low), group, scales, count)
        j += count
        offset = 0
        block += 1
    for g in range(group):
        softmax(scores + 4 * g * PARTITION, high - low, softcap, state + 8 * g)
    fill(acc, 0.0, group * dim)
    block, offset = first, low % block_size
    j = low
    while j < high:
        count = min(block_size - offset, high - j)
        v = base + load_i32(table + 4 * block) * page + offset * line + values
        if kv_dtype == INT8:
            scales = base + load_i32(table + 4 * block) * page + values + load_i64(p + SCALES) + 4 * offset
            scale_columns(scores + 4 * (j - low), group, scales, count)
        later = block + LEAD
        ahead = v
        if later * block_size < context:
            ahead = base + load_i32(table + 4 * later) * page + (values if later <= last else 0)
        for g in range(0, group, MAX_GROUP):
            some = min(MAX_GROUP, group - g)
            place = scores + 4 * (g * PARTITION + j - low)
            weighted_sum(kv_dtype, place, 4 * PARTITION, some, v, count, dim, acc + 4 * g * dim, 4 * dim, ahead)
        j += count
        offset = 0
        block += 1


@device
def join(group: int, dim: int, acc: int, state: int, part: int, part_state: int) -> None:
    """Add a part's result to what the parts before it gave."""
    for g in range(group):
        top, part_top = load_f32(state + 8 * g), load_f32(part_state + 8 * g)
        largest = max(top, part_top)
        a, c = exponential(top - largest), exponential(part_top - largest)
        blend(acc + 4 * g * dim, a, part + 4 * g * dim, c, dim)
        store_f32(state + 8 * g, largest)
        store_f32(state + 8 * g + 4, load_f32(state + 8 * g + 4) * a + load_f32(part_state + 8 * g + 4) * c)


@device
def decode(p: int, seq: int, row: int, head: int, part: int, memory: int) -> None:
    """One sequence of one token, one KV head: all its parts, or the one that ``part`` says; the last of its parts to
    be done joins them."""
    dim, heads, dtype = load_i64(p + DIM), load_i64(p + HEADS), load_i64(p + DTYPE)
    group = heads // load_i64(p + KV_HEADS)
    item = ITEM_SIZE[dtype]
    position = load_i32(load_i64(p + CONTEXT) + 4 * seq) - 1
    low = visible(p, position)
    first, last = low // PARTITION, position // PARTITION
    if part >= 0 and first + part > last:
        return

    q = memory
    scores = q + 4 * group * dim
    acc = scores + 4 * group * PARTITION
    partial = acc + 4 * group * dim
    state = partial + 4 * group * dim
    partial_state = state + 8 * group
    spare = partial_state + 8 * group

    source = load_i64(p + Q) + row * load_i64(p + Q_STRIDE) + head * group * dim * item
    for g in range(group):
        prepare(p, source + g * dim * item, F32, q + 4 * g * dim, load_i64(p + Q_NORM), row, load_f64(p + SCALE), spare)
    if load_i64(p + MODE) == DECODES and load_i64(p + KEYS) != 0 and (part < 0 or first + part == last):
        write(p, row, head, spare)

    out = load_i64(p + OUT) + row * load_i64(p + OUT_STRIDE) + head * group * dim * item
    if part < 0:
        attend_part(p, seq, head, low, min(position + 1, (first + 1) * PARTITION), q, scores, acc, state)
        for i in range(first + 1, last + 1):
            high = min(position + 1, (i + 1) * PARTITION)
            attend_part(p, seq, head, i * PARTITION, high, q, scores, partial, partial_state)
            join(group, dim, acc, state, partial, partial_state)
    else:
        # parts lie in shared memory: [seq, head, part] of [group, dim] and [group, 2], behind a counter for each head
        kv_heads, parts = load_i64(p + KV_HEADS), load_i64(p + PARTS)
        size = 4 * group * (dim + 2)
        pair = seq * kv_heads + head
        shared = load_i64(p + SHARED)
        counter = shared + 8 * pair
        place = shared + 8 * load_i64(p + NUM_SEQS) * kv_heads + pair * parts * size
        mine = place + part * size
        i = first + part
        high = min(position + 1, (i + 1) * PARTITION)
        attend_part(p, seq, head, max(low, i * PARTITION), high, q, scores, mine, mine + 4 * group * dim)
        if fetch_add(counter, 1) != last - first:
            return
        store_i64(counter, 0)  # for the next layer's attention, where they share their memory
        copy_bytes(place, acc, 4 * group * dim)
        copy_bytes(place + 4 * group * dim, state, 8 * group)
        for i in range(1, last - first + 1):
            other = place + i * size
            join(group, dim, acc, state, other, other + 4 * group * dim)
    for g in range(group):
        top, total = load_f32(state + 8 * g), load_f32(state + 8 * g + 4)
        finish(p, out + g * dim * item, head * group + g, acc + 4 * g * dim, top, total, spare)
