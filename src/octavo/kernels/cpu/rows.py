"""Kernels that work row by row: norms, gated activations, rotary embedding, copies of blocks."""

from __future__ import annotations

import math

import torch

from octavo.kernels.cpu import checks
from octavo.kernels.cpu.elementwise import (
    GELU,
    SILU,
    add_round,
    gate,
    narrow,
    rotate,
    scale_weighted,
    sum_squares,
    widen,
)
from octavo.kernels.cpu.emitter import ITEM_SIZE
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
    rows_per_task,
    run,
)
from octavo.kernels.cpu.words import copy_bytes, fetch_add, load_f64, load_i64

SMALL = 40_000
"""Items that one thread does in some 20 microseconds: for fewer, others are not called."""

# ---------------------------------------------------------------- norms

(
    X,
    X_STRIDE,
    RESIDUAL,
    RESIDUAL_STRIDE,
    WEIGHT,
    WEIGHT_DTYPE,
    OUT,
    OUT_STRIDE,
    DTYPE,
    ROWS,
    WIDTH,
    PER_TASK,
    EPS,
    OFFSET,
) = range(FIRST_ARGUMENT, FIRST_ARGUMENT + 8 * 14, 8)
_pack_norm = packer("12q2d")


@device
def norm_tasks(p: int, counter: int, memory: int) -> int:
    """Take tasks until none is left; returns how many. They are runs of rows: add to the residual where there is one,
    and norm."""
    width, dtype, rows = load_i64(p + WIDTH), load_i64(p + DTYPE), load_i64(p + ROWS)
    eps, offset = load_f64(p + EPS), load_f64(p + OFFSET)
    weight = memory + 4 * width
    widen(load_i64(p + WEIGHT_DTYPE), load_i64(p + WEIGHT), weight, width)
    tasks, residual, per_task = load_i64(p + NUM_TASKS), load_i64(p + RESIDUAL), load_i64(p + PER_TASK)
    done = 0
    while True:
        task = fetch_add(counter, 1)
        if task >= tasks:
            break
        for row in range(task * per_task, min(rows, (task + 1) * per_task)):
            x = load_i64(p + X) + row * load_i64(p + X_STRIDE)
            if residual == 0:
                widen(dtype, x, memory, width)
            else:
                add_round(dtype, x, residual + row * load_i64(p + RESIDUAL_STRIDE), memory, width)
            factor = 1.0 / math.sqrt(sum_squares(memory, width) / width + eps)
            scale_weighted(memory, weight, factor, offset, width)
            narrow(dtype, memory, load_i64(p + OUT) + row * load_i64(p + OUT_STRIDE), width)
        done += 1
    return done


@kernel
def norm_rows(p: int) -> None:
    """One norm."""
    worker = fetch_add(p + WORKER, 1)
    norm_tasks(p, p + TASK, load_i64(p + SCRATCH) + worker * load_i64(p + SCRATCH_STRIDE))


def _norm(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float, out: torch.Tensor, offset: float
) -> torch.Tensor:
    rows, target = checks.matrix("x", x), checks.matrix("out", out)
    checks.alike("x", rows, "out", target)
    added, added_stride = 0, 0
    if residual is not None:
        sums = checks.matrix("residual", residual)
        checks.alike("x", rows, "residual", sums)
        added_stride, added = sums[3:]
    dtype, count, width, x_stride, x_address = rows
    weight_dtype, weight_address = checks.weight("weight", weight, width)
    threads = num_threads() if count * width > SMALL else 1
    stride = 8 * width + 127 & -64
    per_task = rows_per_task(count, threads)
    arguments = ARGUMENTS.here
    _pack_norm(
        arguments.words, 0, 0, 0, -(-count // per_task), arguments.scratch(threads * stride), stride, x_address,
        x_stride, added, added_stride, weight_address, weight_dtype, target[4], target[3], dtype, count, width,
        per_task, eps, offset,
    )  # fmt: skip
    run(norm_rows, threads, arguments)
    return out


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor, offset: float = 0.0) -> torch.Tensor:
    """``out = x / rms(x) * (offset + weight)``; x, out [T, H] of one dtype, weight [H]; out may be x.

    Raises:
        ValueError: a tensor's shape, dtype or layout is not as described.
    """
    return _norm(x, None, weight, eps, out, offset)


def add_rms_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    out: torch.Tensor,
    offset: float = 0.0,
) -> torch.Tensor:
    """``residual += x`` in place, rounded to its dtype; ``out`` is the norm of that. All [T, H], weight [H]; out may
    be x.

    Raises:
        ValueError: a tensor's shape, dtype or layout is not as described.
    """
    return _norm(x, residual, weight, eps, out, offset)


# ---------------------------------------------------------------- gated activations

(GATE_UP, GATE_UP_STRIDE, TARGET, TARGET_STRIDE, HELD, KIND, NUM_ROWS, INNER, PIECES, PIECE) = range(
    FIRST_ARGUMENT, FIRST_ARGUMENT + 8 * 10, 8
)
_pack_gate = packer("10q")


@kernel
def gate_rows(p: int) -> None:
    """Tasks are pieces of rows."""
    tasks, pieces, piece = load_i64(p + NUM_TASKS), load_i64(p + PIECES), load_i64(p + PIECE)
    inner, dtype, kind = load_i64(p + INNER), load_i64(p + HELD), load_i64(p + KIND)
    item = ITEM_SIZE[dtype]
    while True:
        task = fetch_add(p + TASK, 1)
        if task >= tasks:
            break
        row = task // pieces
        start = (task - row * pieces) * piece
        g = load_i64(p + GATE_UP) + row * load_i64(p + GATE_UP_STRIDE) + start * item
        target = load_i64(p + TARGET) + row * load_i64(p + TARGET_STRIDE) + start * item
        gate(dtype, kind, g, g + inner * item, target, min(piece, inner - start))


PIECE_SIZE = 2048


def _gate(gate_up: torch.Tensor, out: torch.Tensor, kind: int) -> torch.Tensor:
    rows, (dtype, count, inner, stride, address) = checks.matrix("gate_up", gate_up), checks.matrix("out", out)
    if rows[:3] != (dtype, count, 2 * inner):
        raise ValueError(
            f"out is {tuple(out.shape)} of {out.dtype} and gate_up {tuple(gate_up.shape)} of {gate_up.dtype}: they "
            "must be [T, I] and [T, 2 I] of one dtype"
        )
    pieces = -(-inner // PIECE_SIZE)
    arguments = ARGUMENTS.here
    _pack_gate(
        arguments.words, 0, 0, 0, count * pieces, 0, 0, rows[4], rows[3], address, stride, dtype, kind, count,
        inner, pieces, PIECE_SIZE,
    )  # fmt: skip
    run(gate_rows, num_threads() if count * inner > SMALL else 1, arguments)
    return out


def silu_and_mul(gate_up: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """``out = silu(gate) * up``; gate_up [T, 2 I], the gate in its first half; out [T, I].

    Raises:
        ValueError: a tensor's shape, dtype or layout is not as described.
    """
    return _gate(gate_up, out, SILU)


def gelu_and_mul(gate_up: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """``out = gelu(gate) * up``, gelu in its tanh form; gate_up [T, 2 I], the gate in its first half; out [T, I].

    Raises:
        ValueError: a tensor's shape, dtype or layout is not as described.
    """
    return _gate(gate_up, out, GELU)


# ---------------------------------------------------------------- rotary embedding

(HEADS_AT, ROW_STRIDE, HEAD_STRIDE, HEADS, HEAD_DTYPE, ANGLES, POSITIONS, ROTARY) = range(
    FIRST_ARGUMENT, FIRST_ARGUMENT + 8 * 8, 8
)
_pack_rotary = packer("8q")


@kernel
def rotate_rows(p: int) -> None:
    """Tasks are rows: rotate all heads of a row."""
    memory = load_i64(p + SCRATCH) + fetch_add(p + WORKER, 1) * load_i64(p + SCRATCH_STRIDE)
    tasks, heads, size, dtype = (
        load_i64(p + NUM_TASKS),
        load_i64(p + HEADS),
        load_i64(p + ROTARY),
        load_i64(p + HEAD_DTYPE),
    )
    while True:
        row = fetch_add(p + TASK, 1)
        if row >= tasks:
            break
        angles = load_i64(p + ANGLES) + 4 * size * load_i64(load_i64(p + POSITIONS) + 8 * row)
        for head in range(heads):
            x = load_i64(p + HEADS_AT) + row * load_i64(p + ROW_STRIDE) + head * load_i64(p + HEAD_STRIDE)
            widen(dtype, x, memory, size)
            rotate(memory, angles, size // 2)
            narrow(dtype, memory, x, size)


def rotary_embedding(q: torch.Tensor, k: torch.Tensor, positions: torch.Tensor, cos_sin: torch.Tensor) -> None:
    """Rotate q [T, HQ, D] and k [T, HK, D] in place; both may be strided views with contiguous heads.

    Args:
        q: queries.
        k: keys.
        positions: int64 [T], rows of ``cos_sin``.
        cos_sin: float32 [P, R], R even and at most D: cosines in the first R/2 columns, sines in the others.

    Raises:
        ValueError: a tensor's shape, dtype or layout is not as described.
    """
    for name, x in (("q", q), ("k", k)):
        if x.dim() != 3 or x.stride(2) != 1:
            raise ValueError(f"{name} has shape {tuple(x.shape)} and strides {x.stride()}: it must be [T, heads, D]")
        dtype = checks.code(name, x)
        rows, heads, dim = x.shape
        size = ITEM_SIZE[dtype]
        rotary = checks.angles(cos_sin)
        if rotary > dim:
            raise ValueError(f"cos_sin is {tuple(cos_sin.shape)}: it rotates more than the {dim} dimensions of {name}")
        stride = 4 * rotary + 127 & -64
        threads = num_threads() if rows * heads * dim > SMALL else 1
        arguments = ARGUMENTS.here
        _pack_rotary(
            arguments.words, 0, 0, 0, rows, arguments.scratch(threads * stride), stride, x.data_ptr(),
            x.stride(0) * size, x.stride(1) * size, heads, dtype, cos_sin.data_ptr(),
            checks.vector("positions", positions, torch.int64, rows), rotary,
        )  # fmt: skip
        run(rotate_rows, threads, arguments)


# ---------------------------------------------------------------- copies of blocks

(CACHE, PAGE, SOURCES, TARGETS, PAIRS, CHUNK) = range(FIRST_ARGUMENT, FIRST_ARGUMENT + 8 * 6, 8)
_pack_copy = packer("6q")
CHUNK_BYTES = 1 << 16


@kernel
def copy_pages(p: int) -> None:
    """Tasks are pieces of a page: each copies its piece of all pairs, one after the other."""
    tasks, page, chunk, pairs = load_i64(p + NUM_TASKS), load_i64(p + PAGE), load_i64(p + CHUNK), load_i64(p + PAIRS)
    while True:
        task = fetch_add(p + TASK, 1)
        if task >= tasks:
            break
        start = task * chunk
        base, size = load_i64(p + CACHE) + start, min(chunk, page - start)
        for i in range(pairs):
            source, target = load_i64(load_i64(p + SOURCES) + 8 * i), load_i64(load_i64(p + TARGETS) + 8 * i)
            copy_bytes(base + source * page, base + target * page, size)


def copy_blocks(cache: torch.Tensor, sources: torch.Tensor, targets: torch.Tensor) -> None:
    """Copy whole pages, pair by pair and in order: cache uint8 [num_blocks, page_bytes], both ids int64 [N].

    Raises:
        ValueError: a tensor's shape, dtype or layout is not as described.
    """
    if cache.dim() != 2 or cache.dtype != torch.uint8 or not cache.is_contiguous() or cache.device.type != "cpu":
        raise ValueError(f"cache is {tuple(cache.shape)} of {cache.dtype}: it must be contiguous uint8 on the CPU")
    pairs, page = len(sources), cache.shape[1]
    arguments = ARGUMENTS.here
    _pack_copy(
        arguments.words, 0, 0, 0, -(-page // CHUNK_BYTES), 0, 0, cache.data_ptr(), page,
        checks.vector("sources", sources, torch.int64, pairs), checks.vector("targets", targets, torch.int64, pairs),
        pairs, CHUNK_BYTES,
    )  # fmt: skip
    run(copy_pages, num_threads() if pairs * page > CHUNK_BYTES else 1, arguments)
