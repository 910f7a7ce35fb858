"""Matrix products with weights that stay, packed once into panels (see ``panels.py``).

At a few rows a product is as fast as its weights come from memory, and all that counts is that they come as one stream,
asked for in time. At many rows what counts is that inputs, weights and sums stay in a core's own cache: rows are taken
in chunks, panels in runs, and inputs in blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from octavo.kernels.cpu import checks
from octavo.kernels.cpu.elementwise import GELU, SILU
from octavo.kernels.cpu.emitter import BF16, F32, ITEM_SIZE
from octavo.kernels.cpu.jit import DISABLED, device, has_matrix_unit, host_features, kernel
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
from octavo.kernels.cpu.look_up import PAIRS, look_up
from octavo.kernels.cpu.panels import (
    DEPTH,
    LINE,
    PANEL,
    PLAIN,
    ROWS,
    TILE_BYTES,
    configure,
    panel_product,
    panel_product_beside,
    write_panel,
)
from octavo.kernels.cpu.words import fetch_add, load_i64

SUMS_BYTES = 4 * ROWS * PANEL
STEP_BYTES = 2 * TILE_BYTES
"""Of a panel, for :data:`DEPTH` inputs."""

TASKS_PER_THREAD = 3
"""Enough to share the work out; with more, inputs would be gone over more often."""
RUN_BYTES = 800_000
"""At most so much weight is gone over again for each 32 rows of a chunk."""
CHUNK_BYTES = 1_200_000
"""At most so much of the inputs is gone over again for each run."""
BLOCK_STEPS = 32
"""Where there are many rows, inputs are taken at most so many tiles at a time: most of 32 rows of them stay in the
nearest cache, which weights pass by. With fewer, sums would come and go more often than that is worth."""

ACTIVATIONS = {"silu_and_mul": SILU, "gelu_and_mul": GELU}

(X, X_STRIDE, COUNT, WEIGHT, STEPS, BIAS, KIND, OUT, OUT_STRIDE, OUT_PANEL, PANELS, RUN, RUNS, CHUNK, BLOCK) = range(
    FIRST_ARGUMENT, FIRST_ARGUMENT + 8 * 15, 8
)
OUT_DTYPE = FIRST_ARGUMENT + 8 * 15
_pack = packer("16q")


@device
def _shape(p: int, rows: int) -> None:
    configure(rows)


def panel_tasks(
    product: Callable[..., Any],
    write: Callable[..., Any],
    beside: Callable[..., Any],
    shape: Callable[..., Any] = _shape,
) -> Callable[..., Any]:
    """The loops around the product of one panel, ``product``, and the writing of one, ``write``; ``beside`` is both,
    of :data:`ROWS` rows, the panel written being the one before. They look into the argument words, of which those
    above are the same for all kinds of weights. Neighbouring inputs of a row of x that
    a tile takes are :data:`LINE` bytes of it, whatever their kind. ``shape`` gets the matrix unit ready for so many
    rows."""

    @device
    def tasks(p: int, counter: int, memory: int, sums: int, x: int) -> int:
        """Take tasks, each a chunk of rows and a run of panels, until none is left; returns how many."""
        x_stride, count, chunk_rows = load_i64(p + X_STRIDE), load_i64(p + COUNT), load_i64(p + CHUNK)
        tasks, runs, length = load_i64(p + NUM_TASKS), load_i64(p + RUNS), load_i64(p + RUN)
        panels, steps, block = load_i64(p + PANELS), load_i64(p + STEPS), load_i64(p + BLOCK)
        configured = done = 0
        while True:
            task = fetch_add(counter, 1)
            if task >= tasks:
                break
            chunk = task // runs
            first = (task - chunk * runs) * length
            last = min(first + length, panels)
            start, stop = chunk * chunk_rows, min(count, (chunk + 1) * chunk_rows)
            ahead = 1
            while start < stop:
                rows = min(ROWS, stop - start)
                if rows != configured:
                    shape(p, rows)
                    configured = rows
                for step in range(0, steps, block):
                    inputs = x + start * x_stride + step * LINE
                    ends, before = step + block >= steps, 0
                    for panel in range(first, last):
                        place = sums + (panel - first if block < steps else panel & 1) * SUMS_BYTES
                        some = min(block, steps - step)
                        if ends and panel > first and ahead == 0 and rows == ROWS:
                            beside(p, memory, inputs, panel, step, some, place, before, x, start)
                        else:
                            if ends and panel > first:
                                write(p, memory, before, x, start, rows, panel - 1)
                            product(p, memory, inputs, rows, panel, step, some, place, ahead)
                        before = place
                    if ends:
                        write(p, memory, before, x, start, rows, last - 1)
                start += rows
                ahead = 0
            done += 1
        if configured != 0:
            configure(0)
        return done

    return tasks


@device
def _product(p: int, memory: int, x: int, rows: int, panel: int, step: int, some: int, sums: int, ahead: int) -> None:
    weight = load_i64(p + WEIGHT) + (panel * load_i64(p + STEPS) + step) * STEP_BYTES
    panel_product(x, load_i64(p + X_STRIDE), rows, weight, some, sums, step, ahead)


@device
def _place(p: int, start: int, panel: int) -> int:
    return load_i64(p + OUT) + start * load_i64(p + OUT_STRIDE) + panel * load_i64(p + OUT_PANEL)


@device
def _bias(p: int, panel: int) -> int:
    bias = load_i64(p + BIAS)
    return bias + panel * 2 * PANEL if bias != 0 else 0


@device
def _write(p: int, memory: int, sums: int, x: int, start: int, rows: int, panel: int) -> None:
    dtype, stride = load_i64(p + OUT_DTYPE), load_i64(p + OUT_STRIDE)
    write_panel(dtype, load_i64(p + KIND), sums, rows, _bias(p, panel), _place(p, start, panel), stride)


@device
def _beside(
    p: int, memory: int, x: int, panel: int, step: int, some: int, sums: int, before: int, rows_at: int, start: int
) -> None:
    if load_i64(p + OUT_DTYPE) != BF16:
        _write(p, memory, before, rows_at, start, ROWS, panel - 1)
        _product(p, memory, x, ROWS, panel, step, some, sums, 0)
        return
    weight = load_i64(p + WEIGHT) + (panel * load_i64(p + STEPS) + step) * STEP_BYTES
    panel_product_beside(
        x, load_i64(p + X_STRIDE), weight, some, sums, step, load_i64(p + KIND), before, _bias(p, panel - 1),
        _place(p, start, panel - 1), load_i64(p + OUT_STRIDE),
    )  # fmt: skip


_tasks = panel_tasks(_product, _write, _beside)


@device
def multiply_tasks(p: int, counter: int, memory: int) -> int:
    """Take tasks until none is left; returns how many."""
    return int(_tasks(p, counter, memory, memory, load_i64(p + X)))


@kernel
def multiply(p: int) -> None:
    """One product."""
    worker = fetch_add(p + WORKER, 1)
    multiply_tasks(p, p + TASK, load_i64(p + SCRATCH) + worker * load_i64(p + SCRATCH_STRIDE))


def run_length(panels: int, chunks: int, threads: int, longest: int) -> int:
    """Panels of a run: as many as leave each thread :data:`TASKS_PER_THREAD` tasks, for the inputs of a chunk are gone
    over again in each; and no more than ``longest``."""
    return max(1, min(chunks * panels // (TASKS_PER_THREAD * threads), longest))


def sums_bytes(length: int) -> int:
    """What the sums of a run take: one panel is computed while another is written."""
    return SUMS_BYTES * max(length, 2)


class PanelLinear:
    """``x [M, K] -> x W^T + bias [M, N]`` in bfloat16, summed in float32; keeps no other copy of the weight.

    Args:
        weight: ``[N, K]``, bfloat16; both multiples of 32.
        bias: ``[N]``, bfloat16.
        activation: None, or "silu_and_mul" or "gelu_and_mul": the first half of the columns is then the gate of the
            second half, and the result is ``[M, N / 2]``. Columns are not rounded before they are gated.

    Raises:
        ValueError: the weight's shape or dtype is not as described.
    """

    kind = "panels"
    recordable = True
    widens = True

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None, activation: str | None = None) -> None:
        if not self.serves(weight) or (bias is not None and bias.dtype != weight.dtype):
            raise ValueError(f"a weight of {tuple(weight.shape)}, {weight.dtype} cannot be cut into panels")
        columns, inputs = weight.shape
        by_panels = (columns // PANEL, 2) if activation is None else (2, columns // PANEL)
        pairs = weight.contiguous().view(torch.int32).view(*by_panels, PANEL // 2, inputs // DEPTH, DEPTH // 2)
        if activation is not None:
            # a panel is 16 gates and the 16 columns they belong to
            pairs = pairs.transpose(0, 1)
            bias = None if bias is None else bias.view(*by_panels, PANEL // 2).transpose(0, 1).reshape(-1)
        self.packed = pairs.permute(0, 3, 1, 4, 2).contiguous()
        self.bias = None if bias is None else bias.contiguous()
        self.width = inputs
        self.outputs = columns if activation is None else columns // 2
        self._kind = PLAIN if activation is None else ACTIVATIONS[activation]
        self._panels, self._steps = columns // PANEL, inputs // DEPTH
        self._chunk = max(1, CHUNK_BYTES // (2 * inputs * ROWS)) * ROWS
        self._longest = max(1, RUN_BYTES // (self._steps * STEP_BYTES))
        self._block = -(-self._steps // -(-self._steps // BLOCK_STEPS))

    @staticmethod
    def available() -> bool:
        """Whether this machine is good at it."""
        return has_matrix_unit() or (not DISABLED and {"avx2", "fma"} <= host_features())

    @staticmethod
    def by_tiles() -> bool:
        """Whether the CPU's matrix unit does it."""
        return has_matrix_unit()

    @staticmethod
    def serves(weight: torch.Tensor) -> bool:
        """Whether a weight can be cut into panels."""
        return (
            weight.dtype == torch.bfloat16
            and weight.dim() == 2
            and weight.shape[0] % PANEL == 0
            and weight.shape[1] % DEPTH == 0
            and weight.numel() > 0
        )

    def look_up(self, indexes: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """Write some rows of the weight, int64 ``[T]``, to ``out`` ``[T, K]``, which is returned.

        Raises:
            ValueError: columns that are gated are not in the weight's order.
            IndexError: there is no such row.
        """
        if self._kind != PLAIN:
            raise ValueError("a gated product has no rows to look up")
        return look_up(indexes, out, self.outputs, self.width, PAIRS, self.packed)

    def __call__(self, x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """The product, in ``out`` (bfloat16, or float32: sums are not rounded then) or in fresh memory.

        Raises:
            ValueError: a tensor's shape, dtype or layout is not as described.
        """
        if out is None:
            out = torch.empty(x.shape[0], self.outputs, dtype=torch.bfloat16)
        dtype, count, width, stride, address = checks.matrix("x", x)
        target = checks.matrix("out", out)
        out_dtype = target[0]
        if (dtype, width) != (BF16, self.width) or out_dtype not in (BF16, F32) or target[1:3] != (count, self.outputs):
            raise ValueError(
                f"x is {tuple(x.shape)} of {x.dtype} and out {tuple(out.shape)} of {out.dtype}: they must be "
                f"[M, {self.width}] of bfloat16 and [M, {self.outputs}] of bfloat16 or float32"
            )
        threads = num_threads()
        chunks = -(-count // self._chunk)
        length = run_length(self._panels, chunks, threads, self._longest)
        runs = -(-self._panels // length)
        scratch = sums_bytes(length) + 128
        arguments = ARGUMENTS.here
        _pack(
            arguments.words, 0, 0, 0, chunks * runs, arguments.scratch(threads * scratch), scratch, address, stride,
            count, self.packed.data_ptr(), self._steps, 0 if self.bias is None else self.bias.data_ptr(), self._kind,
            target[4], target[3], (PANEL if self._kind == PLAIN else PANEL // 2) * ITEM_SIZE[out_dtype], self._panels,
            length, runs, self._chunk, self._steps if count <= ROWS else self._block, out_dtype,
        )  # fmt: skip
        run(multiply, threads, arguments)
        return out
