"""Attention of a sequence that brings more tokens than one, tile by tile."""

from __future__ import annotations

from octavo.kernels.cpu.attention.head_row import load_query, store_result, visible
from octavo.kernels.cpu.attention.words import (
    BLOCK_SIZE,
    CONTEXT,
    DIM,
    HEAD,
    HEADS,
    KV,
    KV_DTYPE,
    KV_HEADS,
    LANES,
    PAGE,
    QUERY_START,
    SCALES,
    SOFTCAP,
    TABLE_STRIDE,
    TABLES,
    TILE_KEYS,
    VALUE_OFFSET,
    WINDOW,
)
from octavo.kernels.cpu.elementwise import fill, scale, widen
from octavo.kernels.cpu.emitter import F32, INT8, ITEM_SIZE, WIDTH
from octavo.kernels.cpu.jit import device
from octavo.kernels.cpu.tiles import (
    LOWEST,
    TILE_ROWS,
    collect,
    product,
    spread,
    tile_softmax,
)
from octavo.kernels.cpu.words import load_f32, load_f64, load_i32, load_i64, store_i32


@device
def load_keys(p: int, seq: int, base: int, low: int, high: int, target: int, padded: int) -> None:
    """Keys or values ``low .. high - 1`` of one head become f32 rows of ``padded`` floats; rows and dimensions that
    only pad are zero."""
    dim, block_size, kv_dtype = load_i64(p + DIM), load_i64(p + BLOCK_SIZE), load_i64(p + KV_DTYPE)
    table = load_i64(p + TABLES) + seq * load_i64(p + TABLE_STRIDE)
    page, line, scales = load_i64(p + PAGE), dim * ITEM_SIZE[kv_dtype], load_i64(p + SCALES)
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
        rows_at = base + load_i32(table + 4 * block) * page
        source = rows_at + offset * line
        place = target + 4 * (j - low) * padded
        if padded == dim:
            widen(kv_dtype, source, place, count * dim)
        else:
            for i in range(count):
                widen(kv_dtype, source + i * line, place + 4 * i * padded, dim)
        if kv_dtype == INT8:
            for i in range(count):
                scale(place + 4 * i * padded, load_f32(rows_at + scales + 4 * (offset + i)), dim)
        j += count


@device
def prefill(p: int, seq: int, tile: int, head: int, memory: int) -> None:
    """One tile: pairs ``tile * LANES ..`` of (token, query head), token by token, of one sequence and KV head."""
    dim = load_i64(p + DIM)
    group = load_i64(p + HEADS) // load_i64(p + KV_HEADS)
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
    for lane in range(vectors * WIDTH):
        pair = first_pair + min(lane, pairs - 1)
        store_i32(positions + 4 * lane, first_position + pair // group)
        if lane < pairs:
            load_query(p, start, head, pair, F32, spare, spare + 4 * dim)
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

    for lane in range(pairs):
        collect(acc + 4 * lane, LANES, spare, dim)
        top, total = load_f32(state + 4 * lane), load_f32(state + 4 * (LANES + lane))
        store_result(p, start, head, first_pair + lane, spare, top, total, spare + 4 * dim)
