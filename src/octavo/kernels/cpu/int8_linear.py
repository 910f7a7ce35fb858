"""Matrix products of bytes: weights with a scale for each output, activations with one for each row.

The scheme is that of LLM.int8() (Dettmers et al., 2022) without its outliers: a row's scale is found when the row is
computed with, sums are integers, and each is multiplied by both scales when it is written.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from octavo.kernels.cpu import checks
from octavo.kernels.cpu.emitter import F32, ITEM_SIZE
from octavo.kernels.cpu.int8_panels import BYTE_DEPTH, MOST_INPUTS, QUAD, SHIFTED, byte_product, write_byte_panel
from octavo.kernels.cpu.int8_rows import pack_quantize, quantize_rows, quantize_span, quantized_bytes
from octavo.kernels.cpu.jit import DISABLED, device, kernel
from octavo.kernels.cpu.launch import (
    ARGUMENTS,
    FIRST_ARGUMENT,
    SCRATCH,
    SCRATCH_STRIDE,
    TASK,
    WORKER,
    num_threads,
    packer,
    rows_per_task,
    run,
)
from octavo.kernels.cpu.linear import (
    ACTIVATIONS,
    BIAS,
    BLOCK_STEPS,
    CHUNK_BYTES,
    COUNT,
    KIND,
    OUT,
    OUT_PANEL,
    OUT_STRIDE,
    RUN,
    RUN_BYTES,
    STEP_BYTES,
    STEPS,
    SUMS_BYTES,
    WEIGHT,
    X_STRIDE,
    X,
    panel_tasks,
    run_length,
    sums_bytes,
)
from octavo.kernels.cpu.look_up import QUADS, look_up
from octavo.kernels.cpu.panels import PANEL, PLAIN, ROWS
from octavo.kernels.cpu.words import copy_bytes, fetch_add, load_i64
from octavo.kernels.quantized import QuantizedWeight

HERE_ITEMS = 16_384
"""So many activations each thread makes bytes of by itself: that takes less time than waiting for one another."""

_LINE_BYTES = 4 * PANEL
_ROOM_BYTES = ROWS * _LINE_BYTES
"""Where a panel is written that has fewer columns than others."""

# after the words that all products have
_FIRST = FIRST_ARGUMENT + 8 * 15
(SOURCE_STRIDE, DTYPE, WIDTH, HERE, SCALES, SHIFTS, OUT_DTYPE, COLUMNS, SHARED, SHARED_BYTES) = range(
    _FIRST, _FIRST + 8 * 10, 8
)
_pack = packer("25q")


@device
def _product(p: int, memory: int, x: int, rows: int, panel: int, step: int, some: int, sums: int, ahead: int) -> None:
    weight = load_i64(p + WEIGHT) + (panel * load_i64(p + STEPS) + step) * STEP_BYTES
    shifts = load_i64(p + SHIFTS) + panel * 4 * PANEL
    byte_product(x, load_i64(p + X_STRIDE), rows, weight, some, sums, step, shifts, ahead)


@device
def _write(p: int, memory: int, sums: int, x: int, start: int, rows: int, panel: int) -> None:
    stride, dtype, panel_bytes = load_i64(p + OUT_STRIDE), load_i64(p + OUT_DTYPE), load_i64(p + OUT_PANEL)
    bias, x_scales = load_i64(p + BIAS), x + load_i64(p + COUNT) * load_i64(p + X_STRIDE) + 4 * start
    added = bias + panel * 4 * PANEL if bias != 0 else 0
    scales = load_i64(p + SCALES) + panel * 4 * PANEL
    target = load_i64(p + OUT) + start * stride + panel * panel_bytes
    left = load_i64(p + COLUMNS) * ITEM_SIZE[dtype] - panel * panel_bytes
    if left >= panel_bytes:
        write_byte_panel(dtype, load_i64(p + KIND), sums, rows, x_scales, scales, added, target, stride)
        return
    write_byte_panel(dtype, load_i64(p + KIND), sums, rows, x_scales, scales, added, memory, _LINE_BYTES)
    for row in range(rows):
        copy_bytes(memory + row * _LINE_BYTES, target + row * stride, left)


@device
def _beside(
    p: int, memory: int, x: int, panel: int, step: int, some: int, sums: int, before: int, rows_at: int, start: int
) -> None:
    _write(p, memory, before, rows_at, start, ROWS, panel - 1)
    _product(p, memory, x, ROWS, panel, step, some, sums, 0)


_tasks = panel_tasks(_product, _write, _beside)


@device
def multiply_bytes_tasks(p: int, counter: int, memory: int, shared: int) -> int:
    """Take tasks until none is left; returns how many. The rows lie at ``shared``, as bytes, or are yet to be made."""
    sums, x = memory + _ROOM_BYTES, shared
    if load_i64(p + HERE) != 0:
        count, padded = load_i64(p + COUNT), load_i64(p + X_STRIDE)
        x = sums + max(load_i64(p + RUN), 2) * SUMS_BYTES
        quantize_span(
            load_i64(p + DTYPE), load_i64(p + X), load_i64(p + SOURCE_STRIDE), x, padded, x + count * padded, 0, count,
            load_i64(p + WIDTH),
        )  # fmt: skip
    return int(_tasks(p, counter, memory, sums, x))


@kernel
def multiply_bytes(p: int) -> None:
    """One product."""
    worker = fetch_add(p + WORKER, 1)
    memory = load_i64(p + SCRATCH) + worker * load_i64(p + SCRATCH_STRIDE)
    multiply_bytes_tasks(p, p + TASK, memory, load_i64(p + SHARED))


class Int8PanelLinear:
    """``x [M, K] -> x W^T + bias [M, N]``, of a weight in 8 bits; keeps no other copy of the weight.

    A row's result has the same bits whatever the rows beside it, on every CPU: its sums are exact.

    Args:
        weight: :meth:`serves` says which.
        bias: ``[N]``.
        activation: None, or "silu_and_mul" or "gelu_and_mul": the first half of the columns is then the gate of the
            second half, and the result is ``[M, N / 2]``. Columns are not rounded before they are gated.

    Raises:
        ValueError: the weight is not as described.
    """

    kind = "int8 panels"
    recordable = True
    widens = True

    def __init__(
        self, weight: QuantizedWeight, bias: torch.Tensor | None = None, activation: str | None = None
    ) -> None:
        if not self.serves(weight):
            raise ValueError(
                f"a weight in {weight.bits} bits by groups of {weight.group_size} cannot be cut into panels"
            )
        columns, inputs = weight.shape
        halves = 1 if activation is None else 2
        if columns % halves:
            raise ValueError(f"{columns} columns have no two halves")
        rows = F.pad(by_panels(weight.values, halves), (0, -inputs % BYTE_DEPTH))
        self.width, self.outputs = inputs, columns // halves
        self._panels, self._steps = rows.shape[0] // PANEL, rows.shape[1] // BYTE_DEPTH
        # four neighbouring inputs move as one
        tiles = rows.view(torch.int32).view(self._panels, 2, PANEL // 2, self._steps, BYTE_DEPTH // QUAD)
        self.packed = tiles.permute(0, 3, 1, 4, 2).contiguous()
        self.scales = by_panels(weight.scales[:, 0], halves)
        self.bias = None if bias is None else by_panels(bias.float(), halves)
        self._shifts = rows.sum(1, dtype=torch.int32).mul_(-128) if SHIFTED else None
        self._kind = PLAIN if activation is None else ACTIVATIONS[activation]
        self._panel = PANEL // halves
        self._chunk = max(1, CHUNK_BYTES // (rows.shape[1] * ROWS)) * ROWS
        self._longest = max(1, RUN_BYTES // (self._steps * STEP_BYTES))
        self._block = -(-self._steps // -(-self._steps // BLOCK_STEPS))

    @staticmethod
    def available() -> bool:
        """Whether this machine is good at it: any that compiles it is."""
        return not DISABLED

    @staticmethod
    def serves(weight: QuantizedWeight) -> bool:
        """Whether a weight can be cut into such panels: 8 bits, one scale for each output, around zero."""
        return (
            weight.bits == 8
            and weight.mins is None
            and weight.scales.shape[1] == 1
            and weight.shape[1] <= MOST_INPUTS
            and weight.values.device.type == "cpu"
        )

    @property
    def nbytes(self) -> int:
        """What the weight takes in memory."""
        return sum(kept.nbytes for kept in (self.packed, self.scales, self.bias, self._shifts) if kept is not None)

    def look_up(self, indexes: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """Write some rows of the weight, int64 ``[T]``, to ``out`` ``[T, K]``, of any floating-point dtype up to
        float32, which is returned: a table that is looked up in needs no other copy.

        Raises:
            ValueError: the product is gated, or ``out`` is not as described.
            IndexError: there is no such row.
        """
        if self._kind != PLAIN:
            raise ValueError("a gated product's rows are not in order: it is no table")
        return look_up(indexes, out, self.outputs, self.width, QUADS, self.packed, (self.scales.data_ptr(), F32))

    def __call__(self, x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """The product, in ``out`` (of any floating-point dtype up to float32) or in fresh memory of x's dtype.

        Raises:
            ValueError: a tensor's shape, dtype or layout is not as described.
        """
        if out is None:
            out = torch.empty(x.shape[0], self.outputs, dtype=x.dtype)
        dtype, count, width, stride, address = checks.matrix("x", x)
        out_dtype, out_count, outputs, out_stride, target = checks.matrix("out", out)
        if width != self.width or (out_count, outputs) != (count, self.outputs):
            raise ValueError(
                f"x is {tuple(x.shape)} and out {tuple(out.shape)}: they must be [M, {self.width}] and "
                f"[M, {self.outputs}]"
            )
        threads = num_threads()
        chunks = -(-count // self._chunk)
        length = run_length(self._panels, chunks, threads, self._longest)
        runs = -(-self._panels // length)
        padded = self._steps * BYTE_DEPTH
        rows_bytes = quantized_bytes(count, padded)
        here = count * padded <= HERE_ITEMS
        scratch = _ROOM_BYTES + sums_bytes(length) + (rows_bytes if here else 0) + 127 & -64
        arguments = ARGUMENTS.here
        memory = arguments.scratch(threads * scratch + (0 if here else rows_bytes))
        shared = memory + threads * scratch
        if not here:
            per_task = rows_per_task(count, threads)
            pack_quantize(
                arguments.words, 0, 0, 0, -(-count // per_task), 0, 0, address, stride, dtype, count, width,
                padded, shared, rows_bytes, per_task,
            )  # fmt: skip
            run(quantize_rows, threads, arguments)
        _pack(
            arguments.words, 0, 0, 0, chunks * runs, memory, scratch, address, padded, count, self.packed.data_ptr(),
            self._steps, 0 if self.bias is None else self.bias.data_ptr(), self._kind, target, out_stride,
            self._panel * ITEM_SIZE[out_dtype], self._panels, length, runs, self._chunk,
            self._steps if count <= ROWS else self._block, stride, dtype, width, here, self.scales.data_ptr(),
            0 if self._shifts is None else self._shifts.data_ptr(), out_dtype, self.outputs, shared,
            0 if here else rows_bytes,
        )  # fmt: skip
        run(multiply_bytes, threads, arguments)
        return out


def by_panels(rows: torch.Tensor, halves: int) -> torch.Tensor:
    """Rows of a weight, or one number for each, in the order of panels, filled up with zeros: a panel has as many from
    each half."""
    split = rows.unflatten(0, (halves, -1))
    missing = -split.shape[1] % (PANEL // halves)
    if missing:
        split = torch.cat((split, split.new_zeros(halves, missing, *rows.shape[1:])), dim=1)
    return split.unflatten(1, (-1, PANEL // halves)).transpose(0, 1).flatten(0, 2).contiguous()
