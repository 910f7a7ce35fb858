"""Matrix products with weights of 4 or 8 bits in groups, packed once into panels (see ``grouped_panels.py``).

Activations become bytes as they do for :class:`Int8PanelLinear`.
"""

from __future__ import annotations

import math

import torch

from octavo.kernels.cpu import checks
from octavo.kernels.cpu.emitter import F16, F32, ITEM_SIZE
from octavo.kernels.cpu.grouped_panels import (
    CENTRE,
    FEW_ROWS,
    HALF,
    configure_groups,
    grouped_product,
    room_bytes,
    start_sums,
    sum_groups,
    write_group_panel,
)
from octavo.kernels.cpu.int8_linear import (
    COLUMNS,
    DTYPE,
    HERE,
    HERE_ITEMS,
    OUT_DTYPE,
    SHARED,
    SOURCE_STRIDE,
    WIDTH,
    by_panels,
)
from octavo.kernels.cpu.int8_panels import BYTE_DEPTH, MOST_INPUTS
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
    SUMS_BYTES,
    WEIGHT,
    X_STRIDE,
    X,
    panel_tasks,
    run_length,
    sums_bytes,
)
from octavo.kernels.cpu.look_up import GROUPED_4, GROUPED_8, look_up
from octavo.kernels.cpu.panels import PANEL, PLAIN, ROWS
from octavo.kernels.cpu.words import copy_bytes, fetch_add, load_i64, store_i64
from octavo.kernels.quantized import QuantizedWeight

STEP = 32
"""A group's inputs are a multiple of it."""

_CENTRE_4, _CENTRE_8 = CENTRE[4], CENTRE[8]
_LINE_BYTES = 4 * PANEL
_TAG_BYTES = 64

# after the words that all products of bytes have
_FIRST = FIRST_ARGUMENT + 8 * 25
(BITS, SCALE, GROUPS, SIZE, PANEL_BYTES, GROUP_BYTES, MINS, MINS_BYTES, ROOM_BYTES, TOTALS_BYTES) = range(
    _FIRST, _FIRST + 8 * 10, 8
)
_pack = packer("35q")

# A worker's memory: room for a product or for what is written, what rows the sums of groups are of, these, the sums
# of a run of panels, and where it makes its bytes by itself, these.


@device
def _shape(p: int, rows: int) -> None:
    if rows > FEW_ROWS:
        configure_groups(rows, load_i64(p + SIZE))


@device
def _product(p: int, memory: int, x: int, rows: int, panel: int, step: int, some: int, sums: int, ahead: int) -> None:
    stride, groups, size, bits = load_i64(p + X_STRIDE), load_i64(p + GROUPS), load_i64(p + SIZE), load_i64(p + BITS)
    scale, mins, room = load_i64(p + SCALE), load_i64(p + MINS), load_i64(p + ROOM_BYTES)
    first = step * BYTE_DEPTH // size
    number = min(some * BYTE_DEPTH // size, groups - first)
    totals, totals_bytes = memory + room + _TAG_BYTES, load_i64(p + TOTALS_BYTES)
    if step == 0:
        if (rows <= FEW_ROWS or mins != 0) and load_i64(memory + room) != x:
            for row in range(rows):
                centre = _CENTRE_4 if bits == 4 else _CENTRE_8
                sum_groups(x + row * stride, groups, size, centre, totals + row * totals_bytes)
            store_i64(memory + room, x)
        least = mins + panel * load_i64(p + MINS_BYTES) if mins != 0 else 0
        start_sums(
            least,
            scale,
            groups,
            totals + 4 * groups,
            totals_bytes,
            rows,
            rows if rows <= FEW_ROWS else (rows + 15) & -16,
            sums,
        )
    weight = load_i64(p + WEIGHT) + panel * load_i64(p + PANEL_BYTES) + first * load_i64(p + GROUP_BYTES)
    shifts = totals + 4 * first
    grouped_product(x, stride, rows, shifts, totals_bytes, weight, bits, scale, number, size, sums, memory, ahead)


@device
def _write(p: int, memory: int, sums: int, x: int, start: int, rows: int, panel: int) -> None:
    stride, dtype, panel_bytes = load_i64(p + OUT_STRIDE), load_i64(p + OUT_DTYPE), load_i64(p + OUT_PANEL)
    bias, x_scales = load_i64(p + BIAS), x + load_i64(p + COUNT) * load_i64(p + X_STRIDE) + 4 * start
    added = bias + panel * 4 * PANEL if bias != 0 else 0
    target = load_i64(p + OUT) + start * stride + panel * panel_bytes
    left = load_i64(p + COLUMNS) * ITEM_SIZE[dtype] - panel * panel_bytes
    if left >= panel_bytes:
        write_group_panel(dtype, load_i64(p + KIND), sums, rows, x_scales, added, target, stride)
        return
    write_group_panel(dtype, load_i64(p + KIND), sums, rows, x_scales, added, memory, _LINE_BYTES)
    for row in range(rows):
        copy_bytes(memory + row * _LINE_BYTES, target + row * stride, left)


@device
def _beside(
    p: int, memory: int, x: int, panel: int, step: int, some: int, sums: int, before: int, rows_at: int, start: int
) -> None:
    _write(p, memory, before, rows_at, start, ROWS, panel - 1)
    _product(p, memory, x, ROWS, panel, step, some, sums, 0)


_tasks = panel_tasks(_product, _write, _beside, _shape)


@device
def multiply_groups_tasks(p: int, counter: int, memory: int, shared: int) -> int:
    """Take tasks until none is left; returns how many. The rows lie at ``shared``, as bytes, or are yet to be made."""
    tag = memory + load_i64(p + ROOM_BYTES)
    store_i64(tag, 0)
    sums, x = tag + _TAG_BYTES + ROWS * load_i64(p + TOTALS_BYTES), shared
    if load_i64(p + HERE) != 0:
        count, padded = load_i64(p + COUNT), load_i64(p + X_STRIDE)
        x = sums + max(load_i64(p + RUN), 2) * SUMS_BYTES
        quantize_span(
            load_i64(p + DTYPE), load_i64(p + X), load_i64(p + SOURCE_STRIDE), x, padded, x + count * padded, 0, count,
            load_i64(p + WIDTH),
        )  # fmt: skip
    return int(_tasks(p, counter, memory, sums, x))


@kernel
def multiply_groups(p: int) -> None:
    """One product."""
    worker = fetch_add(p + WORKER, 1)
    memory = load_i64(p + SCRATCH) + worker * load_i64(p + SCRATCH_STRIDE)
    multiply_groups_tasks(p, p + TASK, memory, load_i64(p + SHARED))


class GroupedPanelLinear:
    """``x [M, K] -> x W^T + bias [M, N]``, of a weight in 4 or 8 bits; keeps no other copy of the weight.

    Sums within a group of W are exact, those over groups are in float32 and always in one order: a row's result has
    the same bits whatever the rows beside it.

    Args:
        weight: :meth:`serves` says which.
        bias: ``[N]``.
        activation: None, or "silu_and_mul" or "gelu_and_mul": the first half of the columns is then the gate of the
            second half, and the result is ``[M, N / 2]``. Columns are not rounded before they are gated.

    Raises:
        ValueError: the weight is not as described.
    """

    recordable = True
    widens = True

    def __init__(
        self, weight: QuantizedWeight, bias: torch.Tensor | None = None, activation: str | None = None
    ) -> None:
        columns, inputs = weight.shape
        if not self.serves(weight):
            raise ValueError(
                f"a weight of {columns}x{inputs} in groups of {weight.group_size} inputs cannot be cut into panels: a "
                f"group must be a multiple of {STEP} inputs"
            )
        halves = 1 if activation is None else 2
        if columns % halves:
            raise ValueError(f"{columns} columns have no two halves")
        self.kind = f"int{weight.bits} panels, groups of {weight.group_size}"
        self.width, self.outputs = inputs, columns // halves
        self._bits, self._size, self._groups = weight.bits, weight.group_size, int(weight.scales.shape[1])
        values, scales, mins = (
            by_panels(weight.values, halves),
            by_panels(weight.scales, halves),
            _beyond_centre(weight),
        )
        # scales that are float16 by origin are kept so: they are a ninth of what is read
        exact = all(torch.equal(held, held.half().float()) for held in (scales, mins) if held is not None)
        self._scale, kept = (F16, torch.float16) if exact else (F32, torch.float32)
        self._panels = scales.shape[0] // PANEL
        self.packed = self._pack(values, scales.to(kept))
        self.mins = None
        if mins is not None:
            self.mins = by_panels(mins, halves).unflatten(0, (-1, PANEL)).transpose(1, 2).to(kept).contiguous()
        self.bias = None if bias is None else by_panels(bias.float(), halves)
        self._kind = PLAIN if activation is None else ACTIVATIONS[activation]
        self._panel = PANEL // halves
        self._padded = -(-inputs // BYTE_DEPTH) * BYTE_DEPTH
        self._steps = self._padded // BYTE_DEPTH
        self._chunk = max(1, CHUNK_BYTES // (self._padded * ROWS)) * ROWS
        self._longest = max(1, RUN_BYTES // self.packed[0].numel())
        # a block has whole groups
        unit = math.lcm(self._size, BYTE_DEPTH) // BYTE_DEPTH
        self._block = max(1, BLOCK_STEPS // unit) * unit

    @staticmethod
    def available() -> bool:
        """Whether this machine is good at it: any that compiles it is."""
        return not DISABLED

    @staticmethod
    def serves(weight: QuantizedWeight) -> bool:
        """Whether a weight can be cut into such panels: groups of a multiple of 32 inputs."""
        size = weight.group_size
        return size % STEP == 0 and size <= MOST_INPUTS // 2 and weight.values.device.type == "cpu"

    @property
    def nbytes(self) -> int:
        """What the weight takes in memory."""
        return sum(kept.nbytes for kept in (self.packed, self.mins, self.bias) if kept is not None)

    def look_up(self, indexes: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """Write some rows of the weight, int64 ``[T]``, to ``out`` ``[T, K]``, of any floating-point dtype up to
        float32, which is returned: a table that is looked up in needs no other copy.

        Raises:
            ValueError: the product is gated, or ``out`` is not as described.
            IndexError: there is no such row.
        """
        if self._kind != PLAIN:
            raise ValueError("a gated product's rows are not in order: it is no table")
        mins, layout = self.mins, GROUPED_4 if self._bits == 4 else GROUPED_8
        least = (0, 0) if mins is None else (mins.data_ptr(), mins.stride(0) * mins.itemsize)
        groups = (self._size, self.packed.stride(1))
        return look_up(indexes, out, self.outputs, self.width, layout, self.packed, (0, self._scale), groups, least)

    def _pack(self, values: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        """Bytes ``[panels, groups, n]``: a group's whole numbers, then its scales."""
        size, groups, panels = self._size, self._groups, self._panels
        numbers = PANEL * size * self._bits // 8
        packed = torch.empty(panels, groups, numbers + PANEL * scales.itemsize, dtype=torch.uint8)
        packed[:, :, numbers:] = scales.view(panels, PANEL, groups).transpose(1, 2).contiguous().view(torch.uint8)
        for panel, rows in enumerate(values.view(torch.uint8).unflatten(0, (panels, PANEL))):
            if self._bits == 8:
                # [half, column, group, four, input] -> group, half, four, column, input
                fours = rows.view(2, HALF, groups, size // 4, 4)
            else:
                # bytes of two neighbours become bytes of an input and the one four inputs on
                eights = torch.stack((rows & 15, rows >> 4), dim=2).view(2, HALF, groups, size // 8, 2, 4)
                fours = eights[..., 0, :] | eights[..., 1, :] << 4
            packed[panel, :, :numbers] = fours.permute(2, 0, 3, 1, 4).reshape(groups, numbers)
        return packed

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
        rows_bytes = quantized_bytes(count, self._padded)
        here = count * self._padded <= HERE_ITEMS
        room = max(room_bytes(self._size), ROWS * _LINE_BYTES)
        totals = 8 * self._groups
        scratch = room + _TAG_BYTES + ROWS * totals + sums_bytes(length) + (rows_bytes if here else 0) + 127 & -64
        arguments = ARGUMENTS.here
        memory = arguments.scratch(threads * scratch + (0 if here else rows_bytes))
        shared = memory + threads * scratch
        if not here:
            per_task = rows_per_task(count, threads)
            pack_quantize(
                arguments.words, 0, 0, 0, -(-count // per_task), 0, 0, address, stride, dtype, count, width,
                self._padded, shared, rows_bytes, per_task,
            )  # fmt: skip
            run(quantize_rows, threads, arguments)
        packed, mins, bias = self.packed, self.mins, self.bias
        _pack(
            arguments.words, 0, 0, 0, chunks * runs, memory, scratch, address, self._padded, count, packed.data_ptr(),
            self._steps, 0 if bias is None else bias.data_ptr(), self._kind, target, out_stride,
            self._panel * ITEM_SIZE[out_dtype], self._panels, length, runs, self._chunk,
            self._steps if count <= ROWS else self._block, stride, dtype, width, here, 0, 0, out_dtype, self.outputs,
            shared, 0 if here else rows_bytes, self._bits, self._scale, self._groups, self._size, packed.stride(0),
            packed.stride(1), 0 if mins is None else mins.data_ptr(),
            0 if mins is None else mins.stride(0) * mins.itemsize, room, totals,
        )  # fmt: skip
        run(multiply_groups, threads, arguments)
        return out


def _beyond_centre(weight: QuantizedWeight) -> torch.Tensor | None:
    """What is to be subtracted once whole numbers are taken from the middle of their range; None for nothing."""
    centre = weight.scales * CENTRE[4] if weight.bits == 4 else torch.zeros_like(weight.scales)
    mins = torch.zeros_like(centre) if weight.mins is None else weight.mins
    return None if torch.equal(mins, centre) else mins - centre
