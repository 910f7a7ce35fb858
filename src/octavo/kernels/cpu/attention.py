"""Attention over paged keys and values (Kwon et al., PagedAttention, SOSP 2023) on a CPU.

A sequence that brings one token is *decoded*: keys and values are read straight from the blocks, once for all query
heads that share them. Its context is cut at multiples of ``PARTITION`` keys; each part has a softmax of its own, and
parts are joined in order (as in flash decoding, Dao et al. 2023). Where sequences are few the parts are spread over
threads; the arithmetic is the same.

A sequence that brings more is *prefilled* in tiles: up to ``LANES`` pairs of (token, query head) side by side, against
``TILE_KEYS`` keys at a time, with online softmax (Dao et al., FlashAttention, 2022). Tiles of keys start at multiples
of ``TILE_KEYS`` and a query's arithmetic stays in its lane, so its result depends on its own position and on nothing
else; with ``batch_invariant`` every sequence goes this way, and head sizes that are not a multiple of 16 always do.
"""

from __future__ import annotations

import ctypes
import math

import torch

from octavo.kernels.cpu import checks
from octavo.kernels.cpu.emitter import F32, ITEM_SIZE, WIDTH
from octavo.kernels.cpu.jit import device, kernel
from octavo.kernels.cpu.launch import (
    ARGUMENTS,
    FIRST_ARGUMENT,
    NUM_TASKS,
    SCRATCH,
    SCRATCH_STRIDE,
    TASK,
    WORKER,
    num_threads,
    packer,
    run,
)
from octavo.kernels.cpu.primitives import (
    as_f32,
    copy_bytes,
    fetch_add,
    fill,
    load_f32,
    load_f64,
    load_i32,
    load_i64,
    narrow,
    rotate,
    scale,
    scale_weighted,
    store_f32,
    store_i32,
    store_i64,
    sum_squares,
    widen,
)
from octavo.kernels.cpu.tiles import (
    LOWEST,
    MAX_GROUP,
    NO_WINDOW,
    TILE_ROWS,
    blend,
    collect,
    dots,
    exponential,
    product,
    softmax,
    spread,
    tile_softmax,
    weighted_sum,
)
from octavo.kernels.metadata import AttentionMetadata

PARTITION = 128
"""Keys of one part of a decode."""
LANES = 64
"""Pairs of token and query head of one tile."""
TILE_KEYS = 64
"""Keys that a tile takes at a time."""

DECODE = -1
"""Stands in the schedule for a sequence that is decoded."""

(
    Q,
    Q_STRIDE,
    DTYPE,
    OUT,
    OUT_STRIDE,
    KEYS,
    KEY_STRIDE,
    VALUES,
    VALUE_STRIDE,
    KV,
    PAGE,
    HEAD,
    VALUE_OFFSET,
    BLOCK_SIZE,
    KV_DTYPE,
    TABLES,
    TABLE_STRIDE,
    QUERY_START,
    CONTEXT,
    POSITIONS,
    SLOTS,
    NUM_SEQS,
    NUM_ROWS,
    HEADS,
    KV_HEADS,
    DIM,
    WINDOW,
    SINKS,
    SINKS_DTYPE,
    Q_NORM,
    K_NORM,
    NORM_DTYPE,
    COS_SIN,
    ROTARY,
    WRITES,
    PARTS,
    PARTIALS,
    SCHEDULE,
    ALL_TILES,
    SCALE,
    SOFTCAP,
    EPS,
) = range(FIRST_ARGUMENT, FIRST_ARGUMENT + 8 * 42, 8)
_pack = packer("39q3d")


# ---------------------------------------------------------------- one head's row


@device
def prepare(p: int, source: int, target: int, weight: int, row: int, spare: int) -> None:
    """A head's row becomes f32, is normed if ``weight`` is not 0, and rotated if there is a table of angles."""
    dim = load_i64(p + DIM)
    widen(load_i64(p + DTYPE), source, target, dim)
    if weight != 0:
        factor = 1.0 / math.sqrt(sum_squares(target, dim) / dim + load_f64(p + EPS))
        widen(load_i64(p + NORM_DTYPE), weight, spare, dim)
        scale_weighted(target, spare, factor, 0.0, dim)
    angles = load_i64(p + COS_SIN)
    if angles != 0:
        size = load_i64(p + ROTARY)
        rotate(target, angles + load_i64(load_i64(p + POSITIONS) + 8 * row) * size * 4, size // 2)


@device
def write(p: int, row: int, head: int, spare: int) -> None:
    """Prepare the key of ``row`` and store it and the value in the row's slot."""
    dim, block_size = load_i64(p + DIM), load_i64(p + BLOCK_SIZE)
    dtype, kv_dtype = load_i64(p + DTYPE), load_i64(p + KV_DTYPE)
    item = ITEM_SIZE[dtype]
    slot = load_i64(load_i64(p + SLOTS) + 8 * row)
    block = slot // block_size
    target = load_i64(p + KV) + block * load_i64(p + PAGE) + head * load_i64(p + HEAD)
    target += (slot - block * block_size) * dim * ITEM_SIZE[kv_dtype]
    key = load_i64(p + KEYS) + row * load_i64(p + KEY_STRIDE) + head * dim * item
    prepare(p, key, spare, load_i64(p + K_NORM), row, spare + 4 * dim)
    narrow(kv_dtype, spare, target, dim)
    value = load_i64(p + VALUES) + row * load_i64(p + VALUE_STRIDE) + head * dim * item
    target += load_i64(p + VALUE_OFFSET)
    if dtype == kv_dtype:
        copy_bytes(value, target, dim * item)
    else:
        widen(dtype, value, spare, dim)
        narrow(kv_dtype, spare, target, dim)


@kernel
def write_rows(p: int) -> None:
    """Tasks are rows: prepare and store all heads of a row."""
    spare = load_i64(p + SCRATCH) + fetch_add(p + WORKER, 1) * load_i64(p + SCRATCH_STRIDE)
    tasks, heads = load_i64(p + NUM_TASKS), load_i64(p + KV_HEADS)
    while True:
        row = fetch_add(p + TASK, 1)
        if row >= tasks:
            break
        for head in range(heads):
            write(p, row, head, spare)


@device
def visible(p: int, position: int) -> int:
    """The first key that a token at ``position`` sees."""
    return max(0, position - load_i64(p + WINDOW) + 1)


# ---------------------------------------------------------------- decode


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
    j = low
    while j < high:
        block = j // block_size
        offset = j - block * block_size
        count = min(block_size - offset, high - j)
        k = base + load_i32(table + 4 * block) * page + offset * line
        for g in range(0, group, MAX_GROUP):
            some = min(MAX_GROUP, group - g)
            place = scores + 4 * (g * PARTITION + j - low)
            dots(kv_dtype, q + 4 * g * dim, 4 * dim, some, k, count, dim, place, 4 * PARTITION)
        j += count
    for g in range(group):
        softmax(scores + 4 * g * PARTITION, high - low, softcap, state + 8 * g)
    fill(acc, 0.0, group * dim)
    base += load_i64(p + VALUE_OFFSET)
    j = low
    while j < high:
        block = j // block_size
        offset = j - block * block_size
        count = min(block_size - offset, high - j)
        v = base + load_i32(table + 4 * block) * page + offset * line
        for g in range(0, group, MAX_GROUP):
            some = min(MAX_GROUP, group - g)
            place = scores + 4 * (g * PARTITION + j - low)
            weighted_sum(kv_dtype, place, 4 * PARTITION, some, v, count, dim, acc + 4 * g * dim, 4 * dim)
        j += count


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
def finish(p: int, target: int, query_head: int, acc: int, top: float, total: float, spare: int) -> None:
    """Divide a query's sum by its weights, a sink's included, and write it out."""
    dim, sinks = load_i64(p + DIM), load_i64(p + SINKS)
    kept = as_f32(1.0)
    if sinks != 0:
        dtype = load_i64(p + SINKS_DTYPE)
        widen(dtype, sinks + query_head * ITEM_SIZE[dtype], spare, 1)
        sink = load_f32(spare)
        largest = max(top, sink)
        kept = exponential(top - largest)
        total = total * kept + exponential(sink - largest)
    scale(acc, kept / total, dim)
    narrow(load_i64(p + DTYPE), acc, target, dim)


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
        prepare(p, source + g * dim * item, q + 4 * g * dim, load_i64(p + Q_NORM), row, spare)
    scale(q, load_f64(p + SCALE), group * dim)
    if load_i64(p + WRITES) != 0 and (part < 0 or first + part == last):
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
        shared = load_i64(p + PARTIALS)
        counter = shared + 8 * pair
        place = shared + 8 * load_i64(p + NUM_SEQS) * kv_heads + pair * parts * size
        mine = place + part * size
        i = first + part
        high = min(position + 1, (i + 1) * PARTITION)
        attend_part(p, seq, head, max(low, i * PARTITION), high, q, scores, mine, mine + 4 * group * dim)
        if fetch_add(counter, 1) != last - first:
            return
        copy_bytes(place, acc, 4 * group * dim)
        copy_bytes(place + 4 * group * dim, state, 8 * group)
        for i in range(1, last - first + 1):
            other = place + i * size
            join(group, dim, acc, state, other, other + 4 * group * dim)
    for g in range(group):
        top, total = load_f32(state + 8 * g), load_f32(state + 8 * g + 4)
        finish(p, out + g * dim * item, head * group + g, acc + 4 * g * dim, top, total, spare)


# ---------------------------------------------------------------- prefill


@device
def load_keys(p: int, seq: int, base: int, low: int, high: int, target: int, padded: int) -> None:
    """Keys or values ``low .. high - 1`` of one head become f32 rows of ``padded`` floats; rows and dimensions that
    only pad are zero."""
    dim, block_size, kv_dtype = load_i64(p + DIM), load_i64(p + BLOCK_SIZE), load_i64(p + KV_DTYPE)
    table = load_i64(p + TABLES) + seq * load_i64(p + TABLE_STRIDE)
    page, line = load_i64(p + PAGE), dim * ITEM_SIZE[kv_dtype]
    rows = (high - low + TILE_ROWS - 1) // TILE_ROWS * TILE_ROWS
    if padded != dim:
        fill(target, 0.0, rows * padded)
    else:
        fill(target + 4 * (high - low) * padded, 0.0, (rows - high + low) * padded)
    j = low
    while j < high:
        block = j // block_size
        offset = j - block * block_size
        count = min(block_size - offset, high - j)
        source = base + load_i32(table + 4 * block) * page + offset * line
        place = target + 4 * (j - low) * padded
        if padded == dim:
            widen(kv_dtype, source, place, count * dim)
        else:
            for i in range(count):
                widen(kv_dtype, source + i * line, place + 4 * i * padded, dim)
        j += count


@device
def prefill(p: int, seq: int, tile: int, head: int, memory: int) -> None:
    """One tile: pairs ``tile * LANES ..`` of (token, query head), token by token, of one sequence and KV head."""
    dim, heads, dtype = load_i64(p + DIM), load_i64(p + HEADS), load_i64(p + DTYPE)
    group = heads // load_i64(p + KV_HEADS)
    item = ITEM_SIZE[dtype]
    padded = (dim + WIDTH - 1) // WIDTH * WIDTH
    start = load_i32(load_i64(p + QUERY_START) + 4 * seq)
    queries = load_i32(load_i64(p + QUERY_START) + 4 * seq + 4) - start
    first_position = load_i32(load_i64(p + CONTEXT) + 4 * seq) - queries
    first_pair = tile * LANES
    pairs = min(LANES, queries * group - first_pair)
    vectors = (pairs + WIDTH - 1) // WIDTH
    oldest, newest = first_position + first_pair // group, first_position + (first_pair + pairs - 1) // group

    q = memory  # [padded, LANES]
    acc = q + 4 * padded * LANES  # [padded, LANES]
    scores = acc + 4 * padded * LANES  # [TILE_KEYS, LANES]
    rows = scores + 4 * TILE_KEYS * LANES  # [TILE_KEYS, padded]
    state = rows + 4 * TILE_KEYS * padded  # [3, LANES]
    positions = state + 12 * LANES  # [LANES]
    spare = positions + 4 * LANES

    fill(q, 0.0, padded * LANES)
    fill(acc, 0.0, padded * LANES)
    fill(state, LOWEST, LANES)
    fill(state + 4 * LANES, 0.0, LANES)
    source, source_stride = load_i64(p + Q), load_i64(p + Q_STRIDE)
    factor = load_f64(p + SCALE)
    for lane in range(vectors * WIDTH):
        pair = first_pair + min(lane, pairs - 1)
        token = pair // group
        store_i32(positions + 4 * lane, first_position + token)
        if lane < pairs:
            query_head = head * group + pair - token * group
            place = source + (start + token) * source_stride + query_head * dim * item
            prepare(p, place, spare, load_i64(p + Q_NORM), start + token, spare + 4 * dim)
            scale(spare, factor, dim)
            spread(spare, q + 4 * lane, LANES, dim)

    window = load_i64(p + WINDOW)
    softcap = load_f64(p + SOFTCAP)
    base = load_i64(p + KV) + head * load_i64(p + HEAD)
    first_key = visible(p, oldest)
    for key_tile in range(first_key // TILE_KEYS, newest // TILE_KEYS + 1):
        low = max(first_key, key_tile * TILE_KEYS)
        high = min(newest + 1, (key_tile + 1) * TILE_KEYS)
        load_keys(p, seq, base, low, high, rows, padded)
        padded_rows = (high - low + TILE_ROWS - 1) // TILE_ROWS * TILE_ROWS
        product(rows, padded, 1, padded_rows, padded, q, scores, LANES, vectors, 0)
        masked = 1 if high - 1 > oldest or low <= newest - window else 0
        tile_softmax(scores, LANES, high - low, vectors, low, positions, window, masked, softcap, state)
        load_keys(p, seq, base + load_i64(p + VALUE_OFFSET), low, high, rows, padded)
        product(rows, 1, padded, padded, high - low, scores, acc, LANES, vectors, state + 8 * LANES)

    out, out_stride = load_i64(p + OUT), load_i64(p + OUT_STRIDE)
    for lane in range(pairs):
        pair = first_pair + lane
        token = pair // group
        query_head = head * group + pair - token * group
        collect(acc + 4 * lane, LANES, spare, dim)
        target = out + (start + token) * out_stride + query_head * dim * item
        top, total = load_f32(state + 4 * lane), load_f32(state + 4 * (LANES + lane))
        finish(p, target, query_head, spare, top, total, spare + 4 * dim)


# ---------------------------------------------------------------- kernels


@kernel
def decode_all(p: int) -> None:
    """Every sequence brings one token. Tasks are (sequence, KV head), or (sequence, KV head, part)."""
    memory = load_i64(p + SCRATCH) + fetch_add(p + WORKER, 1) * load_i64(p + SCRATCH_STRIDE)
    tasks, kv_heads, parts = load_i64(p + NUM_TASKS), load_i64(p + KV_HEADS), load_i64(p + PARTS)
    while True:
        task = fetch_add(p + TASK, 1)
        if task >= tasks:
            break
        if parts == 0:
            seq = task // kv_heads
            decode(p, seq, seq, task - seq * kv_heads, -1, memory)
        else:
            pair = task // parts
            seq = pair // kv_heads
            decode(p, seq, seq, pair - seq * kv_heads, task - pair * parts, memory)


@kernel
def make_schedule(p: int) -> None:
    """List what is to be done for each KV head, as (sequence, tile or DECODE): tiles first, for they take longer, and
    of a sequence the last one first, for it sees most. Sets the number of tasks."""
    schedule, group = load_i64(p + SCHEDULE), load_i64(p + HEADS) // load_i64(p + KV_HEADS)
    seqs, starts = load_i64(p + NUM_SEQS), load_i64(p + QUERY_START)
    count = 0
    for wanted in range(2):
        for seq in range(seqs):
            queries = load_i32(starts + 4 * seq + 4) - load_i32(starts + 4 * seq)
            decoded = 1 if queries == 1 and load_i64(p + ALL_TILES) == 0 else 0
            if decoded != wanted:
                continue
            tiles = 1 if decoded else (queries * group + LANES - 1) // LANES
            for tile in range(tiles - 1, -1, -1):
                store_i64(schedule + 16 * count, seq)
                store_i64(schedule + 16 * count + 8, DECODE if decoded else tile)
                count += 1
    store_i64(p + NUM_TASKS, count * load_i64(p + KV_HEADS))


@kernel
def attend_all(p: int) -> None:
    """Tasks are (entry of the schedule, KV head)."""
    memory = load_i64(p + SCRATCH) + fetch_add(p + WORKER, 1) * load_i64(p + SCRATCH_STRIDE)
    tasks, kv_heads, schedule = load_i64(p + NUM_TASKS), load_i64(p + KV_HEADS), load_i64(p + SCHEDULE)
    while True:
        task = fetch_add(p + TASK, 1)
        if task >= tasks:
            break
        entry = task // kv_heads
        head = task - entry * kv_heads
        seq, tile = load_i64(schedule + 16 * entry), load_i64(schedule + 16 * entry + 8)
        if tile == DECODE:
            decode(p, seq, load_i32(load_i64(p + QUERY_START) + 4 * seq), head, -1, memory)
        else:
            prefill(p, seq, tile, head, memory)


# ---------------------------------------------------------------- entries


def _attention(
    q: int,
    q_stride: int,
    k: int,
    k_stride: int,
    v: int,
    v_stride: int,
    num_rows: int,
    dtype: int,
    q_norm: int,
    k_norm: int,
    norm_dtype: int,
    eps: float,
    cos_sin: int,
    rotary: int,
    kv: torch.Tensor,
    layer: int,
    meta: AttentionMetadata,
    scale: float,
    out: int,
    out_stride: int,
    num_heads: int,
    window: int | None,
    softcap: float,
    sinks: torch.Tensor | None,
    batch_invariant: bool,
) -> None:
    """Both entries; k is 0 where keys and values are in their blocks already."""
    kv_address, kv_dtype, num_kv_heads, block_size, dim, page, head_bytes = checks.cache(kv, layer)
    group = num_heads // num_kv_heads
    tables = meta.block_tables
    num_seqs = tables.shape[0]
    threads = num_threads()
    all_tiles = batch_invariant or dim % WIDTH != 0
    pure = meta.max_query == 1 and not all_tiles
    pairs = num_seqs * num_kv_heads
    parts = 0
    if pure and pairs < 8 * threads and meta.max_context > PARTITION:
        low = 0 if window is None else max(0, meta.max_context - window)
        # a window may straddle one more border than its length says
        parts = (meta.max_context - 1) // PARTITION - low // PARTITION + (1 if window is None else 2)
    decode_words = group * (3 * dim + PARTITION + 4) + 3 * dim
    if pure:
        stride, entries = 4 * decode_words, 0
    else:
        padded = -(-dim // WIDTH) * WIDTH
        tile_words = 2 * padded * LANES + TILE_KEYS * (LANES + padded) + 4 * LANES + 3 * dim
        stride, entries = 4 * max(decode_words, tile_words), 2 * num_seqs + num_rows * group // LANES
    stride = stride + 127 & -64
    counters = 8 * pairs if parts else 0
    shared = counters + pairs * parts * 4 * group * (dim + 2) + 16 * entries
    memory = ARGUMENTS.scratch(shared + threads * stride)
    if counters:
        ctypes.memset(memory, 0, counters)
    tasks = pairs * (parts or 1) if pure else num_rows
    _pack(
        ARGUMENTS.words,
        0,
        0,
        0,
        tasks,
        memory + (shared + 63 & -64),
        stride,
        q,
        q_stride,
        dtype,
        out,
        out_stride,
        k,
        k_stride,
        v,
        v_stride,
        kv_address,
        page,
        head_bytes,
        num_kv_heads * head_bytes,
        block_size,
        kv_dtype,
        tables.data_ptr(),
        tables.stride(0) * 4,
        meta.query_start.data_ptr(),
        meta.context_len.data_ptr(),
        meta.positions.data_ptr(),
        meta.slots.data_ptr(),
        num_seqs,
        num_rows,
        num_heads,
        num_kv_heads,
        dim,
        NO_WINDOW if window is None else window,
        0 if sinks is None else sinks.data_ptr(),
        F32 if sinks is None else checks.code(sinks),
        q_norm,
        k_norm,
        norm_dtype,
        cos_sin,
        rotary,
        1 if pure and k else 0,
        parts,
        memory,
        memory,
        1 if all_tiles else 0,
        scale,
        softcap,
        eps,
    )
    if pure:
        run(decode_all, threads if pairs * group * dim * meta.max_context > SMALL else 1)
        return
    if k:
        run(write_rows, threads if num_rows * num_kv_heads * dim > SMALL else 1)
    words = ARGUMENTS.words
    words[TASK // 8] = words[WORKER // 8] = 0
    run(make_schedule, 1)
    words[TASK // 8] = words[WORKER // 8] = 0
    run(attend_all, threads)


SMALL = 20000
"""Multiply-adds below which one thread is quicker than two."""


def paged_attention(
    q: torch.Tensor,
    kv: torch.Tensor,
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
        kv: :meth:`KvLayout.view`'s tensor [num_blocks, num_layers, 2, HK, block_size, D].
        layer: which of its layers.
        meta: the flat batch.
        scale: what scores are multiplied by.
        out: of q's dtype; rows may be strided.
        window: a token sees itself and the ``window - 1`` before it.
        softcap: scores become ``softcap * tanh(score / softcap)``; 0 leaves them.
        sinks: [HQ], one more logit in each head's softmax denominator.
        batch_invariant: a row's bits depend on its own position only, not on how many rows its sequence brought.

    Raises:
        ValueError: a tensor's shape, dtype or layout is not as above.
    """
    num_rows, num_heads, dim = q.shape
    dtype = checks.heads("q", q)
    if checks.heads("out", out) != dtype:
        raise ValueError(f"out is {out.dtype} and q is {q.dtype}: they must be the same")
    checks.attention(kv, meta, num_rows, num_heads, dim, sinks, window)
    size = ITEM_SIZE[dtype]
    _attention(
        q.data_ptr(), q.stride(0) * size, 0, 0, 0, 0, num_rows, dtype, 0, 0, F32, 0.0, 0, 0, kv, layer, meta, scale,
        out.data_ptr(), out.stride(0) * size, num_heads, window, softcap, sinks, batch_invariant,
    )  # fmt: skip
    return out


def fused_attention(
    qkv: torch.Tensor,
    q_norm: torch.Tensor | None,
    k_norm: torch.Tensor | None,
    eps: float,
    cos_sin: torch.Tensor,
    kv: torch.Tensor,
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
    dtype. Arguments are those of :func:`paged_attention`, :func:`rotary_embedding` and :func:`rms_norm`; the norm's
    weights are [D] or None, both of one dtype.

    Raises:
        ValueError: a tensor's shape, dtype or layout is not as described.
    """
    dtype = checks.matrix("qkv", qkv)
    if checks.matrix("out", out) != dtype:
        raise ValueError(f"out is {out.dtype} and qkv is {qkv.dtype}: they must be the same")
    num_rows, width = qkv.shape
    dim = kv.shape[5]
    if width != (num_heads + 2 * num_kv_heads) * dim:
        raise ValueError(
            f"qkv has {width} columns: {num_heads} + 2 * {num_kv_heads} heads of {dim} need another number"
        )
    checks.attention(kv, meta, num_rows, num_heads, dim, sinks, window)
    norm_dtype, q_weight, k_weight = checks.head_norms(q_norm, k_norm, dim)
    rotary = checks.angles(cos_sin, dim)
    size = ITEM_SIZE[dtype]
    address, stride = qkv.data_ptr(), qkv.stride(0) * size
    k = address + num_heads * dim * size
    v = k + num_kv_heads * dim * size
    _attention(
        address, stride, k, stride, v, stride, num_rows, dtype, q_weight, k_weight, norm_dtype, eps,
        cos_sin.data_ptr(), rotary, kv, layer, meta, scale, out.data_ptr(), out.stride(0) * size, num_heads,
        window, softcap, sinks, batch_invariant,
    )  # fmt: skip
    return out


def write_kv(k: torch.Tensor, v: torch.Tensor, kv: torch.Tensor, layer: int, slots: torch.Tensor) -> None:
    """Store row t of k and v [T, HK, D] in slot ``slots[t]`` (block id * block_size + offset) of ``layer``.

    Rows of k and v may be strided; the heads of a row lie one after the other.

    Raises:
        ValueError: a tensor's shape, dtype or layout is not as described.
    """
    dtype = checks.heads("k", k)
    if checks.heads("v", v) != dtype or v.shape != k.shape:
        raise ValueError(f"v is {tuple(v.shape)} of {v.dtype} and k {tuple(k.shape)} of {k.dtype}: they must be alike")
    address, kv_dtype, num_kv_heads, block_size, dim, page, head_bytes = checks.cache(kv, layer)
    num_rows = k.shape[0]
    if k.shape[1:] != (num_kv_heads, dim):
        raise ValueError(f"k is {tuple(k.shape)}: kv holds {num_kv_heads} heads of {dim}")
    checks.vector("slots", slots, torch.int64, num_rows)
    threads = num_threads()
    size, stride = ITEM_SIZE[dtype], 12 * dim + 63 & -64
    words = [0] * 42
    for field, value in (
        (DTYPE, dtype),
        (KEYS, k.data_ptr()),
        (KEY_STRIDE, k.stride(0) * size),
        (VALUES, v.data_ptr()),
        (VALUE_STRIDE, v.stride(0) * size),
        (KV, address),
        (PAGE, page),
        (HEAD, head_bytes),
        (VALUE_OFFSET, num_kv_heads * head_bytes),
        (BLOCK_SIZE, block_size),
        (KV_DTYPE, kv_dtype),
        (SLOTS, slots.data_ptr()),
        (KV_HEADS, num_kv_heads),
        (DIM, dim),
    ):
        words[(field - FIRST_ARGUMENT) // 8] = value
    _pack(ARGUMENTS.words, 0, 0, 0, num_rows, ARGUMENTS.scratch(threads * stride), stride, *words)
    run(write_rows, threads if num_rows * num_kv_heads * dim > SMALL else 1)
