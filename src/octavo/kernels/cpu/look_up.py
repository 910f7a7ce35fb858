"""Rows of a weight that lies in panels, read back: a table of embeddings that is the head's weight is held once."""

from __future__ import annotations

import math

import torch

from octavo.kernels.cpu import checks
from octavo.kernels.cpu.elementwise import fill, narrow, scale, widen
from octavo.kernels.cpu.emitter import F32, INT8, ITEM_SIZE
from octavo.kernels.cpu.grouped_panels import CENTRE, HALF
from octavo.kernels.cpu.int8_panels import BYTE_DEPTH, QUAD
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
from octavo.kernels.cpu.panels import DEPTH, LINE, PANEL, TILE_BYTES
from octavo.kernels.cpu.words import as_f32, fetch_add, load_f32, load_i32, load_i64, store_f32, store_i32

PAIRS, QUADS, GROUPED_8, GROUPED_4 = range(4)
"""How a panel lies: see ``panels.py``, ``int8_panels.py`` and ``grouped_panels.py``."""

SMALL = 40_000
"""Items that one thread looks up in some 20 microseconds: for fewer, others are not called."""

(
    INDEXES,
    OUT,
    OUT_STRIDE,
    OUT_DTYPE,
    WIDTH,
    ROWS,
    LAYOUT,
    TABLE,
    PANEL_BYTES,
    SCALES,
    SCALE_DTYPE,
    SIZE,
    GROUP_BYTES,
    MINS,
    MINS_BYTES,
) = range(FIRST_ARGUMENT, FIRST_ARGUMENT + 8 * 15, 8)
_pack = packer("15q")

_CENTRE_4 = float(CENTRE[4])
_BYTE_TILE, _PAIR_TILE = BYTE_DEPTH // QUAD, DEPTH // 2


@device
def _scattered(panel: int, column: int, lines: int, count: int, target: int) -> None:
    """Copy ``count`` words of 32 bits of a column; a tile has so many ``lines``."""
    start = panel + (column // HALF) * TILE_BYTES + 4 * (column % HALF)
    for i in range(count):
        step = i // lines
        store_i32(target + 4 * i, load_i32(start + step * 2 * TILE_BYTES + (i - step * lines) * LINE))


@device
def _number(dtype: int, address: int, spare: int) -> float:
    widen(dtype, address, spare, 1)
    return load_f32(spare)


@device
def _grouped(p: int, panel: int, index: int, memory: int) -> None:
    """A column of weights in groups: whole numbers, times their group's scale, less its least value."""
    size, group_bytes, dtype = load_i64(p + SIZE), load_i64(p + GROUP_BYTES), load_i64(p + SCALE_DTYPE)
    few = load_i64(p + LAYOUT) == GROUPED_4
    column, item = index % PANEL, ITEM_SIZE[dtype]
    words = size // 8 if few else size // 4
    number, mins = index // PANEL, load_i64(p + MINS)
    bytes_, spare = memory + 4 * load_i64(p + WIDTH), memory + 4 * load_i64(p + WIDTH) + size + 64
    for group in range(load_i64(p + WIDTH) // size):
        start = panel + group * group_bytes
        factor = _number(dtype, start + 2 * words * LINE + column * item, spare)
        least = as_f32(0.0)
        if few:
            least = as_f32(_CENTRE_4) * factor
        if mins != 0:
            beyond = mins + number * load_i64(p + MINS_BYTES) + (group * PANEL + column) * item
            least = least + _number(dtype, beyond, spare)
        source = start + (column // HALF) * words * LINE + 4 * (column % HALF)
        for word in range(words):
            held = load_i32(source + word * LINE)
            if few:
                store_i32(bytes_ + 8 * word, held & 0x0F0F0F0F)
                store_i32(bytes_ + 8 * word + 4, (held >> 4) & 0x0F0F0F0F)
            else:
                store_i32(bytes_ + 4 * word, held)
        row = memory + 4 * group * size
        widen(INT8, bytes_, row, size)
        scale(row, factor, size)
        for i in range(size):
            store_f32(row + 4 * i, load_f32(row + 4 * i) - least)


@device
def look_up_tasks(p: int, counter: int, memory: int) -> int:
    """Take tasks until none is left; returns how many. They are rows; one that the table has not becomes NaN."""
    tasks, width, layout, dtype = (
        load_i64(p + NUM_TASKS),
        load_i64(p + WIDTH),
        load_i64(p + LAYOUT),
        load_i64(p + OUT_DTYPE),
    )
    done = 0
    while True:
        task = fetch_add(counter, 1)
        if task >= tasks:
            break
        done += 1
        index = load_i64(load_i64(p + INDEXES) + 8 * task)
        target = load_i64(p + OUT) + task * load_i64(p + OUT_STRIDE)
        panel = load_i64(p + TABLE) + (index // PANEL) * load_i64(p + PANEL_BYTES)
        if index < 0 or index >= load_i64(p + ROWS):
            fill(memory, as_f32(math.nan), width)
        elif layout == PAIRS:
            _scattered(panel, index % PANEL, _PAIR_TILE, width // 2, target)
            continue
        elif layout == QUADS:
            _scattered(panel, index % PANEL, _BYTE_TILE, (width + QUAD - 1) // QUAD, memory + 4 * width)
            widen(INT8, memory + 4 * width, memory, width)
            scale(memory, load_f32(load_i64(p + SCALES) + 4 * index), width)
        else:
            _grouped(p, panel, index, memory)
        narrow(dtype, memory, target, width)
    return done


@kernel
def look_up_rows(p: int) -> None:
    """One look-up."""
    worker = fetch_add(p + WORKER, 1)
    look_up_tasks(p, p + TASK, load_i64(p + SCRATCH) + worker * load_i64(p + SCRATCH_STRIDE))


def look_up(
    indexes: torch.Tensor,
    out: torch.Tensor,
    rows: int,
    width: int,
    layout: int,
    packed: torch.Tensor,
    scales: tuple[int, int] = (0, F32),
    groups: tuple[int, int] = (0, 0),
    mins: tuple[int, int] = (0, 0),
) -> torch.Tensor:
    """Write some of a table's rows to ``out``, which is returned. A recorded look-up of a row that the table has not
    gives NaN.

    Args:
        indexes: int64 [T].
        out: [T, width], with :data:`PAIRS` of bfloat16.
        rows: of the table.
        width: of a row.
        layout: how its panels lie.
        packed: [panels, ...].
        scales: address of the scales of rows, and the dtype of those of groups.
        groups: inputs of a group, and bytes.
        mins: address of the groups' least values, and bytes of a panel's.

    Raises:
        ValueError: a tensor's shape, dtype or layout is not as described.
        IndexError: there is no such row.
    """
    dtype, count, out_width, stride, target = checks.matrix("out", out)
    if out_width != width or (layout == PAIRS and out.dtype != torch.bfloat16):
        raise ValueError(f"out is {tuple(out.shape)} of {out.dtype}: it must be [T, {width}], of the table's dtype")
    address = checks.vector("indexes", indexes, torch.int64, count)
    arguments = ARGUMENTS.here
    if not count:
        return out
    if arguments.recorded is None and not (int(indexes.min()) >= 0 and int(indexes.max()) < rows):
        raise IndexError(f"rows {int(indexes.min())} to {int(indexes.max())} are asked for: the table has {rows}")
    threads = num_threads() if count * width > SMALL else 1
    memory = 5 * width + groups[0] + 255 & -64
    _pack(
        arguments.words, 0, 0, 0, count, arguments.scratch(threads * memory), memory, address, target, stride, dtype,
        width, rows, layout, packed.data_ptr(), packed.stride(0) * packed.itemsize, *scales, *groups, *mins,
    )  # fmt: skip
    run(look_up_rows, threads, arguments)
    return out
