"""The words that one call of attention's kernel is told its work in, and the sizes that decide its arithmetic."""

from __future__ import annotations

import struct

from octavo.kernels.cpu.launch import FIRST_ARGUMENT, packer
from octavo.kernels.cpu.panels import MATRIX_UNIT

PARTITION = 128
"""Keys of one part of a decode."""
LANES = 128 if MATRIX_UNIT else 64
"""Pairs of token and query head of one tile: with more, keys and values are made ready less often; with less, more of
it stays in the nearest cache."""
TILE_KEYS = 64
"""Keys that a tile takes at a time."""

WRITE_ROWS = 16
"""Rows whose keys and values one thread writes: neighbours share memory, and two threads would take it from each
other."""

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
    SCALES,
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
) = range(FIRST_ARGUMENT, FIRST_ARGUMENT + 8 * 42, 8)
pack = packer("20q3d")
pack_plan = struct.Struct("19q")

WRITE, DECODES, SCHEDULE, TILES = range(4)
"""Modes of the kernel."""
