"""The kernel: what is to be done, and by which of its forms."""

from __future__ import annotations

from octavo.kernels.cpu.attention.decode import decode
from octavo.kernels.cpu.attention.head_row import write
from octavo.kernels.cpu.attention.prefill import prefill
from octavo.kernels.cpu.attention.prefill_matrix import prefill_matrix
from octavo.kernels.cpu.attention.words import (
    ALL_TILES,
    DECODE,
    DECODES,
    DTYPE,
    HEADS,
    KV_DTYPE,
    KV_HEADS,
    LANES,
    MODE,
    NUM_ROWS,
    NUM_SEQS,
    PARTS,
    QUERY_START,
    SCHEDULE,
    SHARED,
    TILES,
    WRITE,
    WRITE_ROWS,
)
from octavo.kernels.cpu.emitter import BF16, INT8, WIDTH
from octavo.kernels.cpu.jit import device, kernel
from octavo.kernels.cpu.launch import (
    NUM_TASKS,
    SCRATCH,
    SCRATCH_STRIDE,
    TASK,
    WORKER,
)
from octavo.kernels.cpu.panels import MATRIX_UNIT, configure
from octavo.kernels.cpu.words import fetch_add, load_i32, load_i64, store_i64


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


@device
def by_matrix_unit(p: int) -> bool:
    """Whether tiles go through the matrix unit: it takes bfloat16, so where queries are more exact it is not asked."""
    kv_dtype = load_i64(p + KV_DTYPE)
    return MATRIX_UNIT and load_i64(p + DTYPE) == BF16 and kv_dtype in (BF16, INT8)


@device
def decode_tasks(p: int, counter: int, memory: int) -> int:
    """Take tasks of mode DECODES until none is left; returns how many."""
    tasks, kv_heads, parts = load_i64(p + NUM_TASKS), load_i64(p + KV_HEADS), load_i64(p + PARTS)
    done = 0
    while True:
        task = fetch_add(counter, 1)
        if task >= tasks:
            break
        pair, part = task, -1
        if parts != 0:
            pair = task // parts
            part = task - pair * parts
        seq = pair // kv_heads
        decode(p, seq, seq, pair - seq * kv_heads, part, memory)
        done += 1
    return done


@kernel
def attend(p: int) -> None:
    """By mode, tasks are

    - WRITE: ``WRITE_ROWS`` rows whose keys and values are to be prepared and stored;
    - DECODES: (sequence of one token, KV head), or (sequence, KV head, part) where ``PARTS`` is not 0;
    - TILES: (entry of the schedule, KV head).

    SCHEDULE has no tasks: it writes the schedule."""
    mode = load_i64(p + MODE)
    if mode == SCHEDULE:
        make_schedule(p)
        return
    memory = load_i64(p + SCRATCH) + fetch_add(p + WORKER, 1) * load_i64(p + SCRATCH_STRIDE)
    if mode == DECODES:
        decode_tasks(p, p + TASK, memory)
        return
    tasks, kv_heads = load_i64(p + NUM_TASKS), load_i64(p + KV_HEADS)
    on_unit = mode == TILES and by_matrix_unit(p)
    if on_unit:
        configure(2 * WIDTH)
    while True:
        task = fetch_add(p + TASK, 1)
        if task >= tasks:
            break
        if mode == WRITE:
            for row in range(task * WRITE_ROWS, min((task + 1) * WRITE_ROWS, load_i64(p + NUM_ROWS))):
                for head in range(kv_heads):
                    write(p, row, head, memory)
            continue
        entry = task // kv_heads
        head = task - entry * kv_heads
        place = load_i64(p + SHARED) + 16 * entry
        seq, tile = load_i64(place), load_i64(place + 8)
        if tile == DECODE:
            decode(p, seq, load_i32(load_i64(p + QUERY_START) + 4 * seq), head, -1, memory)
        elif on_unit:
            prefill_matrix(p, seq, tile, head, memory)
        else:
            prefill(p, seq, tile, head, memory)
    if on_unit:
        configure(0)
