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
import struct
from typing import NamedTuple

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

LEAD = 3
"""Blocks between the one that is worked on and the one that is asked for."""
PARTITION = 128
"""Keys of one part of a decode."""
LANES = 64
"""Pairs of token and query head of one tile."""
TILE_KEYS = 64
"""Keys that a tile takes at a time."""

SMALL_DECODE, SMALL_TILES, SMALL_WRITE = 200_000, 1_000_000, 30_000
"""Products of queries and keys (decode, tiles) and items (write) that one thread does in some 20 microseconds: for
fewer, others are not called. They could save little, and where cores are shared a thread that is called may be late."""

DECODE = -1
"""Stands in the schedule for a sequence that is decoded."""

# words of a call, then those of a plan
(
    MODE,
    Q,
    Q_STRIDE,
    OUT,
    OUT_STRIDE,
    KEYS,
    KEY_STRIDE,
    VALUES,
    VALUE_STRIDE,
    KV,
    NUM_ROWS,
    DTYPE,
    SINKS,
    SINKS_DTYPE,
    Q_NORM,
    K_NORM,
    NORM_DTYPE,
    COS_SIN,
    ROTARY,
    SLOTS,
    SCALE,
    SOFTCAP,
    EPS,
    PAGE,
    HEAD,
    VALUE_OFFSET,
    BLOCK_SIZE,
    KV_DTYPE,
    KV_HEADS,
    DIM,
    HEADS,
    WINDOW,
    PARTS,
    ALL_TILES,
    NUM_SEQS,
    TABLES,
    TABLE_STRIDE,
    QUERY_START,
    CONTEXT,
    POSITIONS,
    SHARED,
) = range(FIRST_ARGUMENT, FIRST_ARGUMENT + 8 * 41, 8)
_pack = packer("20q3d")
_pack_plan = struct.Struct("18q")

WRITE, DECODES, SCHEDULE, TILES = range(4)
"""Modes of the kernel."""


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


# ---------------------------------------------------------------- the kernel


@device
def make_schedule(p: int) -> None:
    """List what is to be done for each KV head, as (sequence, tile or DECODE): tiles first, for they take longer, and
    of a sequence the last one first, for it sees most. Sets the number of tasks."""
    schedule, group = load_i64(p + SHARED), load_i64(p + HEADS) // load_i64(p + KV_HEADS)
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
def attend(p: int) -> None:
    """By mode, tasks are

    - WRITE: rows whose keys and values are to be prepared and stored;
    - DECODES: (sequence of one token, KV head), or (sequence, KV head, part) where ``PARTS`` is not 0;
    - TILES: (entry of the schedule, KV head).

    SCHEDULE has no tasks: it writes the schedule."""
    mode = load_i64(p + MODE)
    if mode == SCHEDULE:
        make_schedule(p)
        return
    memory = load_i64(p + SCRATCH) + fetch_add(p + WORKER, 1) * load_i64(p + SCRATCH_STRIDE)
    tasks, kv_heads, parts = load_i64(p + NUM_TASKS), load_i64(p + KV_HEADS), load_i64(p + PARTS)
    while True:
        task = fetch_add(p + TASK, 1)
        if task >= tasks:
            break
        if mode == WRITE:
            for head in range(kv_heads):
                write(p, task, head, memory)
            continue
        pair, part = task, -1
        if mode == DECODES and parts != 0:
            pair = task // parts
            part = task - pair * parts
        entry = pair // kv_heads
        head = pair - entry * kv_heads
        row, seq, tile = entry, entry, DECODE
        if mode == TILES:
            place = load_i64(p + SHARED) + 16 * entry
            seq, tile = load_i64(place), load_i64(place + 8)
            row = load_i32(load_i64(p + QUERY_START) + 4 * seq)
        if tile == DECODE:
            decode(p, seq, row, head, part, memory)
        else:
            prefill(p, seq, tile, head, memory)


# ---------------------------------------------------------------- plans


class Plan(NamedTuple):
    """What the calls of one step have in common: they differ by layer only."""

    batch: checks.Batch
    mode: int
    tasks: int
    threads: int
    write_threads: int
    counters: int  #: bytes at the start of the shared memory that must be zero
    shared: int  #: bytes
    stride: int  #: bytes of scratch of each thread
    words: bytes  #: the kernel's arguments from PAGE on, but for the shared memory's address


def make_plan(
    batch: checks.Batch, cache: checks.Cache, num_heads: int, window: int | None, batch_invariant: bool, threads: int
) -> Plan:
    """Choose between decode and tiles, and how to divide the work.

    Raises:
        ValueError: the parts do not fit each other.
    """
    kv_heads, dim = cache.num_kv_heads, cache.dim
    if num_heads % kv_heads:
        raise ValueError(f"{num_heads} query heads cannot share {kv_heads} KV heads: not a multiple")
    if window is not None and window < 1:
        raise ValueError(f"window={window} must be at least 1, or None")
    group = num_heads // kv_heads
    pairs = batch.num_seqs * kv_heads
    tiles_only = batch_invariant or dim % WIDTH != 0
    sees = batch.max_context if window is None else min(window, batch.max_context)
    parts = counters = 0
    words = 4 * (group * (3 * dim + PARTITION + 4) + 3 * dim)
    if batch.max_query == 1 and not tiles_only:
        mode = DECODES
        if threads > 1 and pairs < 8 * threads and sees > PARTITION:
            # keys that are seen may straddle one border more than their number says
            parts = (sees + PARTITION - 2) // PARTITION + 1
            counters = 8 * pairs
        tasks = pairs * (parts or 1)
        shared = counters + tasks * 4 * group * (dim + 2) if parts else 0
        busy = threads if pairs * group * dim * sees > SMALL_DECODE else 1
    else:
        mode, tasks = TILES, 0
        busy = threads if batch.num_rows * num_heads * dim * sees > SMALL_TILES else 1
        padded = -(-dim // WIDTH) * WIDTH
        words = max(words, 4 * (2 * padded * LANES + TILE_KEYS * (LANES + padded) + 4 * LANES + 3 * dim))
        shared = 16 * (2 * batch.num_seqs + batch.num_rows * group // LANES)
    return Plan(
        batch,
        mode,
        tasks,
        busy,
        threads if batch.num_rows * kv_heads * dim > SMALL_WRITE else 1,
        counters,
        shared + 63 & -64,
        words + 127 & -64,
        _pack_plan.pack(
            cache.page,
            cache.head,
            kv_heads * cache.head,
            cache.block_size,
            cache.dtype,
            kv_heads,
            dim,
            num_heads,
            NO_WINDOW if window is None else window,
            parts,
            tiles_only,
            batch.num_seqs,
            batch.tables,
            batch.table_stride,
            batch.query_start,
            batch.context_len,
            batch.positions,
            0,
        ),
    )


class Plans:
    """The plans of the latest batch: one for each kind of layer of each layer group."""

    def __init__(self) -> None:
        # the batch's query_start, and its plans by kind of layer, beside the metadata that each was made for
        self._latest: tuple[torch.Tensor | None, dict[tuple[object, ...], tuple[AttentionMetadata, Plan]]] = (None, {})

    def find(
        self, meta: AttentionMetadata, cache: checks.Cache, num_heads: int, window: int | None, batch_invariant: bool
    ) -> Plan:
        """The plan for a call, made anew where the batch is not the latest one. The metadata of a batch's layer groups
        share their ``query_start``; by that they are known as one batch."""
        threads = num_threads()
        latest, plans = self._latest
        key = (id(meta), num_heads, window, batch_invariant, threads, cache)
        if latest is meta.query_start:
            found = plans.get(key)
            if found is not None:
                return found[1]  # what holds ``meta``: its id is no other's
        plan = make_plan(checks.batch(meta), cache, num_heads, window, batch_invariant, threads)
        held = plans if latest is meta.query_start else {}
        self._latest = (meta.query_start, {**held, key: (meta, plan)})
        return plan


PLANS = Plans()


def _attention(
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
    _pack(
        words, 0, 0, 0, batch.num_rows if writes_first else plan.tasks, memory + plan.shared, plan.stride,
        WRITE if writes_first else plan.mode, q, q_stride, out[4], out[3], k, q_stride, v, q_stride, kv,
        batch.num_rows, out[0], sinks_address, sinks_dtype, q_norm, k_norm, norm_dtype, cos_sin, rotary, batch.slots,
        scale, softcap, eps,
    )  # fmt: skip
    arguments.bytes[PAGE : PAGE + len(plan.words)] = plan.words
    words[SHARED // 8] = memory
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


# ---------------------------------------------------------------- entries


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
    plan = PLANS.find(meta, cache, num_heads, window, batch_invariant)
    checks.alike("q", queries, "out", target)
    if queries[1] != plan.batch.num_rows or q.shape[2] != cache.dim:
        raise ValueError(
            f"q is {tuple(q.shape)}: meta describes {plan.batch.num_rows} rows, and kv holds heads of {cache.dim}"
        )
    _attention(
        plan, queries[4], queries[3], target, 0, 0, (0, 0, F32), 0.0, 0, 0, _layer(cache, layer), scale,
        softcap, sinks, num_heads,
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
    weights are [D] or None, both of one dtype. ``qkv`` is left as it was.

    Raises:
        ValueError: a tensor's shape, dtype or layout is not as described.
    """
    dtype, rows, width, stride, address = checks.matrix("qkv", qkv)
    target, cache = checks.matrix("out", out), checks.cache(kv)
    plan = PLANS.find(meta, cache, num_heads, window, batch_invariant)
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
        plan, address, stride, target, k, v, (q_weight, k_weight, norm_dtype), eps, cos_sin.data_ptr(),
        rotary, _layer(cache, layer), scale, softcap, sinks, num_heads,
    )  # fmt: skip
    return out


def write_kv(k: torch.Tensor, v: torch.Tensor, kv: torch.Tensor, layer: int, slots: torch.Tensor) -> None:
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
    _pack(
        arguments.words, 0, 0, 0, rows, arguments.scratch(threads * stride), stride, WRITE, 0, 0, 0, 0,
        k_address, k_stride, values[4], values[3], _layer(cache, layer), rows, dtype,
        0, F32, 0, 0, F32, 0, 0, address, 0.0, 0.0, 0.0,
    )  # fmt: skip
    words = _pack_plan.pack(
        cache.page, cache.head, kv_heads * cache.head, cache.block_size, cache.dtype, kv_heads, dim, *[0] * 11
    )
    arguments.bytes[PAGE : PAGE + len(words)] = words
    run(attend, threads, arguments)
