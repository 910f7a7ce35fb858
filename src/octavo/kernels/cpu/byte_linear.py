"""What products of bytes have in common, however their weights are packed.

Rows of activations become bytes first (see ``int8_rows.py``): where they are few by each thread for itself, and else by
all threads for all, in a kernel that runs before. A panel's sums are written with the scales of their rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from octavo.kernels.cpu import checks
from octavo.kernels.cpu.emitter import ITEM_SIZE
from octavo.kernels.cpu.int8_panels import BYTE_DEPTH
from octavo.kernels.cpu.int8_rows import pack_quantize, quantize_rows, quantize_span, quantized_bytes
from octavo.kernels.cpu.jit import Kernel, device
from octavo.kernels.cpu.launch import ARGUMENTS, FIRST_ARGUMENT, num_threads, packer, rows_per_task, run
from octavo.kernels.cpu.linear import (
    ACTIVATIONS,
    BIAS,
    CHUNK_BYTES,
    COUNT,
    OUT,
    OUT_PANEL,
    OUT_STRIDE,
    RUN,
    RUN_BYTES,
    SUMS_BYTES,
    X_STRIDE,
    X,
    panel_tasks,
    run_length,
    sums_bytes,
)
from octavo.kernels.cpu.panels import PANEL, PLAIN, ROWS
from octavo.kernels.cpu.words import copy_bytes, load_i64

HERE_ITEMS = 16_384
"""So many activations each thread makes bytes of by itself: that takes less time than waiting for one another."""

_LINE_BYTES = 4 * PANEL
ROOM_BYTES = ROWS * _LINE_BYTES
"""At the start of a worker's memory: where a panel is written that has fewer columns than others."""

# after the words that all products have
_COMMON = 15
_FIRST = FIRST_ARGUMENT + 8 * _COMMON
(SOURCE_STRIDE, DTYPE, WIDTH, HERE, OUT_DTYPE, COLUMNS, SHARED, SHARED_BYTES) = range(_FIRST, _FIRST + 8 * 8, 8)
OWN = _FIRST + 8 * 8
"""Where the words begin that a kind of weight has for itself."""


def byte_tasks(
    product: Callable[..., Any], write: Callable[..., Any], *shape: Callable[..., Any]
) -> Callable[..., Any]:
    """The loops of a product: ``product`` and ``shape`` as for :func:`panel_tasks`; ``write(p, panel, sums, rows,
    x_scales, bias, target, stride)`` writes the sums of whole panels, ``bias`` and ``x_scales`` being this panel's and
    these rows'."""

    @device
    def put(p: int, memory: int, sums: int, x: int, start: int, rows: int, panel: int) -> None:
        stride, dtype, panel_bytes = load_i64(p + OUT_STRIDE), load_i64(p + OUT_DTYPE), load_i64(p + OUT_PANEL)
        bias, x_scales = load_i64(p + BIAS), x + load_i64(p + COUNT) * load_i64(p + X_STRIDE) + 4 * start
        added = bias + panel * 4 * PANEL if bias != 0 else 0
        target = load_i64(p + OUT) + start * stride + panel * panel_bytes
        left = load_i64(p + COLUMNS) * ITEM_SIZE[dtype] - panel * panel_bytes
        if left >= panel_bytes:
            write(p, panel, sums, rows, x_scales, added, target, stride)
            return
        write(p, panel, sums, rows, x_scales, added, memory, _LINE_BYTES)
        for row in range(rows):
            copy_bytes(memory + row * _LINE_BYTES, target + row * stride, left)

    @device
    def beside(
        p: int, memory: int, x: int, panel: int, step: int, some: int, sums: int, before: int, rows_at: int, start: int
    ) -> None:
        put(p, memory, before, rows_at, start, ROWS, panel - 1)
        product(p, memory, x, ROWS, panel, step, some, sums, 0)

    tasks = panel_tasks(product, put, beside, *shape)

    @device
    def rows_then_tasks(p: int, counter: int, memory: int, sums: int, shared: int) -> int:
        """Take tasks until none is left; returns how many. The rows lie at ``shared``, as bytes, or are made here,
        behind the sums."""
        x = shared
        if load_i64(p + HERE) != 0:
            count, padded = load_i64(p + COUNT), load_i64(p + X_STRIDE)
            x = sums + max(load_i64(p + RUN), 2) * SUMS_BYTES
            quantize_span(
                load_i64(p + DTYPE), load_i64(p + X), load_i64(p + SOURCE_STRIDE), x, padded, x + count * padded, 0,
                count, load_i64(p + WIDTH),
            )  # fmt: skip
        return int(tasks(p, counter, memory, sums, x))

    return rows_then_tasks


class ByteProduct:
    """How a product is run: what does not depend on how its weight is packed.

    Args:
        kernel: runs it.
        columns: of the weight.
        inputs: of the weight.
        activation: None, or a gate's: the first half of the columns is then the gate of the second half.
        panel_bytes: of a packed panel.
        block: inputs are taken so many tiles at a time where there are many rows.
        own: how many words the kernel has for itself, from :data:`OWN` on.

    Raises:
        ValueError: there are no two halves.
    """

    def __init__(
        self, kernel: Kernel, columns: int, inputs: int, activation: str | None, panel_bytes: int, block: int, own: int
    ) -> None:
        halves = 1 if activation is None else 2
        if columns % halves:
            raise ValueError(f"{columns} columns have no two halves")
        self.width, self.outputs = inputs, columns // halves
        self.gated = activation is not None
        self._kernel = kernel
        self._pack = packer(f"{_COMMON + 8 + own}q")
        self._kind = PLAIN if activation is None else ACTIVATIONS[activation]
        self._panel = PANEL // halves  # columns written
        self._panels = -(-self.outputs // self._panel)
        self._padded = -(-inputs // BYTE_DEPTH) * BYTE_DEPTH
        self._chunk = max(1, CHUNK_BYTES // (self._padded * ROWS)) * ROWS
        self._longest = max(1, RUN_BYTES // panel_bytes)
        self._block = block

    def __call__(
        self,
        x: torch.Tensor,
        out: torch.Tensor | None,
        packed: torch.Tensor,
        bias: torch.Tensor | None,
        room: int,
        own: tuple[int, ...],
    ) -> torch.Tensor:
        """The product, in ``out`` (of any floating-point dtype up to float32) or in fresh memory of x's dtype.

        Args:
            x: ``[M, inputs]``.
            out: ``[M, outputs]``.
            packed: the weight.
            bias: by panels.
            room: bytes of a worker's memory before the sums, :data:`ROOM_BYTES` or more.
            own: the kernel's own words.

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
        threads, padded, steps = num_threads(), self._padded, self._padded // BYTE_DEPTH
        chunks = -(-count // self._chunk)
        length = run_length(self._panels, chunks, threads, self._longest)
        runs = -(-self._panels // length)
        rows_bytes = quantized_bytes(count, padded)
        here = count * padded <= HERE_ITEMS
        scratch = room + sums_bytes(length) + (rows_bytes if here else 0) + 127 & -64
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
        self._pack(
            arguments.words, 0, 0, 0, chunks * runs, memory, scratch, address, padded, count, packed.data_ptr(), steps,
            0 if bias is None else bias.data_ptr(), self._kind, target, out_stride,
            self._panel * ITEM_SIZE[out_dtype], self._panels, length, runs, self._chunk,
            steps if count <= ROWS else self._block, stride, dtype, width, here, out_dtype, self.outputs, shared,
            0 if here else rows_bytes, *own,
        )  # fmt: skip
        run(self._kernel, threads, arguments)
        return out


def by_panels(rows: torch.Tensor, halves: int) -> torch.Tensor:
    """Rows of a weight, or one number for each, in the order of panels, filled up with zeros: a panel has as many from
    each half."""
    split = rows.unflatten(0, (halves, -1))
    missing = -split.shape[1] % (PANEL // halves)
    if missing:
        split = torch.cat((split, split.new_zeros(halves, missing, *rows.shape[1:])), dim=1)
    return split.unflatten(1, (-1, PANEL // halves)).transpose(0, 1).flatten(0, 2).contiguous()
