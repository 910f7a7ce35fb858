"""A tile of prefill on a CPU's matrix unit: what ``prefill.py`` computes, with products of bfloat16.

Queries (scaled by then) and weights are rounded to bfloat16, as eager attention in bfloat16 rounds them; keys and
values are bfloat16 as they are stored, or int8, which bfloat16 holds exactly, their scales being applied to scores and
weights in f32. Sums are f32. A key has its place in a tile of ``TILE_KEYS`` by its position, whoever asks: which
products the unit adds in one go then depends on positions alone, and so do a query's bits.
"""

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
from octavo.kernels.cpu.elementwise import fill, scale
from octavo.kernels.cpu.emitter import BF16, INT8, ITEM_SIZE, WIDTH
from octavo.kernels.cpu.jit import device
from octavo.kernels.cpu.pairs import int8_to_bf16, pack_weights, rescale, transpose_pairs, transpose_words
from octavo.kernels.cpu.panels import DEPTH, LINE, PANEL, TILE_BYTES, panel_product
from octavo.kernels.cpu.tiles import LOWEST, tile_softmax
from octavo.kernels.cpu.words import copy_bytes, load_f32, load_f64, load_i32, load_i64, prefetch, store_i32

PANELS = LANES // PANEL

STATE = 4 * 3 * PANEL
"""Bytes of the state of a panel of queries."""


def scratch(dim: int) -> int:
    """Floats of memory that a tile needs."""
    padded = -(-dim // DEPTH) * DEPTH
    panels = LANES * padded // 2 + LANES * padded + TILE_KEYS * LANES + TILE_KEYS * LANES // 2
    rows = 2 * TILE_KEYS * padded // 2
    return panels + rows + PANELS * 3 * PANEL + LANES + TILE_KEYS + WIDTH * padded + 3 * dim


@device
def gather(p: int, seq: int, base: int, first: int, low: int, high: int, target: int, padded: int, scales: int) -> None:
    """Keys or values ``low .. high - 1`` of one head become rows of ``padded`` bfloat16, their scales (of int8) floats;
    the row of key ``first`` is at ``target``. Rows and dimensions that only pad are zero."""
    dim, block_size, kv_dtype = load_i64(p + DIM), load_i64(p + BLOCK_SIZE), load_i64(p + KV_DTYPE)
    table = load_i64(p + TABLES) + seq * load_i64(p + TABLE_STRIDE)
    page, line = load_i64(p + PAGE), dim * ITEM_SIZE[kv_dtype]
    if padded != dim or high - low != TILE_KEYS:
        fill(target, 0.0, TILE_KEYS * padded // 2)
    j = low
    while j < high:
        block = j // block_size
        offset = j - block * block_size
        count = min(block_size - offset, high - j)
        rows = base + load_i32(table + 4 * block) * page
        source, place = rows + offset * line, target + 2 * (j - first) * padded
        if kv_dtype == INT8:
            copy_bytes(rows + load_i64(p + SCALES) + 4 * offset, scales + 4 * (j - first), 4 * count)
        # one run where rows have nothing to pad
        runs, length = (1, count * dim) if padded == dim else (count, dim)
        for i in range(runs):
            if kv_dtype == INT8:
                int8_to_bf16(source + i * line, place + 2 * i * padded, length)
            else:
                copy_bytes(source + i * line, place + 2 * i * padded, 2 * length)
        j += count


@device
def ask_for(p: int, seq: int, base: int, first: int, end: int, part: int, parts: int) -> None:
    """Ask for a part of the keys or values ``first .. end - 1``, to be gathered soon: they lie in blocks anywhere,
    which no cache expects."""
    block_size, line = load_i64(p + BLOCK_SIZE), load_i64(p + DIM) * ITEM_SIZE[load_i64(p + KV_DTYPE)]
    table = load_i64(p + TABLES) + seq * load_i64(p + TABLE_STRIDE)
    last = (end - 1) // block_size
    for block in range(first // block_size + part, last + 1, parts):
        prefetch(base + load_i32(table + 4 * block) * load_i64(p + PAGE), block_size * line)


@device
def pack_queries(
    p: int, start: int, head: int, first_pair: int, pairs: int, q: int, padded: int, rows: int, spare: int
) -> None:
    """Pairs ``first_pair ..`` of (token, query head) become panels of bfloat16 at ``q``. ``rows`` has room for 16 rows
    of ``padded`` bfloat16."""
    fill(q, 0.0, LANES * padded // 2)
    for first in range(0, pairs, WIDTH):
        fill(rows, 0.0, WIDTH * padded // 2)
        for i in range(min(WIDTH, pairs - first)):
            load_query(p, start, head, first_pair + first + i, BF16, rows + 2 * i * padded, spare)
        panel = q + first // PANEL * 2 * PANEL * padded
        place = panel + first % PANEL // WIDTH * TILE_BYTES
        for step in range(padded // DEPTH):
            transpose_words(rows + step * LINE, 2 * padded, place + step * 2 * TILE_BYTES, LINE)


@device
def scale_rows(rows: int, low: int, high: int, scales: int) -> None:
    """Multiply rows ``low .. high - 1`` of a panel of scores or weights by the scales of their keys."""
    for j in range(low, high):
        scale(rows + 4 * PANEL * j, load_f32(scales + 4 * j), PANEL)


@device
def prefill_matrix(p: int, seq: int, tile: int, head: int, memory: int) -> None:
    """One tile: pairs ``tile * LANES ..`` of (token, query head), token by token, of one sequence and KV head."""
    dim, kv_dtype = load_i64(p + DIM), load_i64(p + KV_DTYPE)
    group = load_i64(p + HEADS) // load_i64(p + KV_HEADS)
    padded = (dim + DEPTH - 1) // DEPTH * DEPTH
    start = load_i32(load_i64(p + QUERY_START) + 4 * seq)
    queries = load_i32(load_i64(p + QUERY_START) + 4 * seq + 4) - start
    first_position = load_i32(load_i64(p + CONTEXT) + 4 * seq) - queries
    first_pair = tile * LANES
    pairs = min(LANES, queries * group - first_pair)
    panels = (pairs + PANEL - 1) // PANEL
    oldest, newest = first_position + first_pair // group, first_position + (first_pair + pairs - 1) // group

    q = memory  # panels of [padded, 32] bfloat16
    acc = q + 2 * LANES * padded  # panels of [padded, 32]
    scores = acc + 4 * LANES * padded  # panels of [TILE_KEYS, 32]
    weights = scores + 4 * TILE_KEYS * LANES  # a panel of [TILE_KEYS, 32] bfloat16 for each of them
    rows = weights + 2 * TILE_KEYS * LANES  # [TILE_KEYS, padded] bfloat16
    turned = rows + 2 * TILE_KEYS * padded  # [padded, TILE_KEYS] bfloat16
    state = turned + 2 * TILE_KEYS * padded  # panels of [3, 32]
    positions = state + PANELS * STATE  # [LANES]
    scales = positions + 4 * LANES  # [TILE_KEYS]
    block = scales + 4 * TILE_KEYS  # [16, padded]
    spare = block + 4 * WIDTH * padded

    pack_queries(p, start, head, first_pair, pairs, q, padded, block, spare)
    fill(acc, 0.0, padded * LANES)
    for panel in range(panels):
        fill(state + panel * STATE, LOWEST, PANEL)
        fill(state + panel * STATE + 4 * PANEL, 0.0, PANEL)
    for lane in range(panels * PANEL):
        store_i32(positions + 4 * lane, first_position + (first_pair + min(lane, pairs - 1)) // group)

    window, softcap = load_i64(p + WINDOW), load_f64(p + SOFTCAP)
    base = load_i64(p + KV) + head * load_i64(p + HEAD)
    values = base + load_i64(p + VALUE_OFFSET)
    first_key = visible(p, oldest)
    for key_tile in range(first_key // TILE_KEYS, newest // TILE_KEYS + 1):
        first = key_tile * TILE_KEYS
        low, high = max(first_key, first), min(newest + 1, first + TILE_KEYS)
        # rows of the tile that are computed: whole steps of the unit
        top, end = (low - first) // DEPTH * DEPTH, (high - first + DEPTH - 1) // DEPTH * DEPTH
        masked = 1 if high - 1 > oldest or low <= newest - window else 0
        gather(p, seq, base, first, low, high, rows, padded, scales)
        for panel in range(panels):
            s, own = scores + panel * 4 * TILE_KEYS * PANEL, state + panel * STATE
            for j in range(top, end, DEPTH):
                x = rows + 2 * padded * j
                panel_product(
                    x, 2 * padded, DEPTH, q + panel * 2 * PANEL * padded, padded // DEPTH, s + 4 * PANEL * j, 0, 0
                )
            if kv_dtype == INT8:
                scale_rows(s, low - first, high - first, scales)
            ask_for(p, seq, base, first + TILE_KEYS, min(newest + 1, first + 2 * TILE_KEYS), panel, panels)
            tile_softmax(
                s + 4 * PANEL * (low - first), PANEL, high - low, PANEL // WIDTH, low, positions + 4 * PANEL * panel,
                window, masked, softcap, own,
            )  # fmt: skip
        gather(p, seq, values, first, low, high, rows, padded, scales)
        for j in range(top, end, DEPTH):
            for i in range(0, padded, WIDTH):
                transpose_pairs(
                    rows + 2 * (padded * j + i), 2 * padded, turned + 2 * (TILE_KEYS * i + j), 2 * TILE_KEYS
                )
        for panel in range(panels):
            s, packed = scores + panel * 4 * TILE_KEYS * PANEL, weights + panel * 2 * TILE_KEYS * PANEL
            if kv_dtype == INT8:
                scale_rows(s, low - first, high - first, scales)
            fill(s + 4 * PANEL * top, 0.0, PANEL * (low - first - top))
            fill(s + 4 * PANEL * (high - first), 0.0, PANEL * (end - high + first))
            pack_weights(s + 4 * PANEL * top, end - top, packed)
            sums = acc + panel * 4 * padded * PANEL
            ask_for(p, seq, values, first + TILE_KEYS, min(newest + 1, first + 2 * TILE_KEYS), panel, panels)
            rescale(sums, padded, state + panel * STATE + 8 * PANEL)
            for i in range(0, padded, DEPTH):
                x = turned + 2 * (TILE_KEYS * i + top)
                panel_product(x, 2 * TILE_KEYS, DEPTH, packed, (end - top) // DEPTH, sums + 4 * PANEL * i, 1, 0)

    for lane in range(pairs):
        panel, column = lane // PANEL, lane % PANEL
        own = state + panel * STATE + 4 * column
        if lane % WIDTH == 0:
            for i in range(0, padded, WIDTH):
                place = acc + 4 * PANEL * (panel * padded + i) + 4 * column
                transpose_words(place, 4 * PANEL, block + 4 * i, 4 * padded)
        result = block + 4 * padded * (lane % WIDTH)
        store_result(p, start, head, first_pair + lane, result, load_f32(own), load_f32(own + 4 * PANEL), spare)
