"""Matrix products with weights of 4 or 8 bits in groups, packed once into panels (see ``grouped_panels.py``).

Activations become bytes as they do for :class:`Int8PanelLinear`.
"""

from __future__ import annotations

import math

import torch

from octavo.kernels.cpu.byte_linear import OUT_DTYPE, OWN, ROOM_BYTES, SHARED, ByteProduct, by_panels, byte_tasks
from octavo.kernels.cpu.emitter import F16, F32
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
from octavo.kernels.cpu.int8_panels import BYTE_DEPTH, MOST_INPUTS
from octavo.kernels.cpu.jit import DISABLED, device, kernel
from octavo.kernels.cpu.launch import SCRATCH, SCRATCH_STRIDE, TASK, WORKER
from octavo.kernels.cpu.linear import BLOCK_STEPS, KIND, WEIGHT, X_STRIDE
from octavo.kernels.cpu.look_up import GROUPED_4, GROUPED_8, look_up
from octavo.kernels.cpu.panels import PANEL, ROWS
from octavo.kernels.cpu.words import fetch_add, load_i64, store_i64
from octavo.kernels.quantized import QuantizedWeight

STEP = 32
"""A group's inputs are a multiple of it."""

_CENTRE_4, _CENTRE_8 = CENTRE[4], CENTRE[8]
_TAG_BYTES = 64

(BITS, SCALE, GROUPS, SIZE, PANEL_BYTES, GROUP_BYTES, MINS, MINS_BYTES, ROOM, TOTALS_BYTES) = range(
    OWN, OWN + 8 * 10, 8
)

# A worker's memory: room for a product or for what is written, what rows the sums of groups are of, these, the sums
# of a run of panels, and where it makes its bytes by itself, these.


@device
def _shape(p: int, rows: int) -> None:
    if rows > FEW_ROWS:
        configure_groups(rows, load_i64(p + SIZE))


@device
def _product(p: int, memory: int, x: int, rows: int, panel: int, step: int, some: int, sums: int, ahead: int) -> None:
    stride, groups, size, bits = load_i64(p + X_STRIDE), load_i64(p + GROUPS), load_i64(p + SIZE), load_i64(p + BITS)
    scale, mins, room = load_i64(p + SCALE), load_i64(p + MINS), load_i64(p + ROOM)
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
def _write(p: int, panel: int, sums: int, rows: int, x_scales: int, bias: int, target: int, stride: int) -> None:
    write_group_panel(load_i64(p + OUT_DTYPE), load_i64(p + KIND), sums, rows, x_scales, bias, target, stride)


_tasks = byte_tasks(_product, _write, _shape)


@device
def multiply_groups_tasks(p: int, counter: int, memory: int, shared: int) -> int:
    """Take tasks until none is left; returns how many. Where rows are not made bytes here, they lie at ``shared``."""
    tag = memory + load_i64(p + ROOM)
    store_i64(tag, 0)
    sums = tag + _TAG_BYTES + ROWS * load_i64(p + TOTALS_BYTES)
    return int(_tasks(p, counter, memory, sums, shared))


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
        self._bits, self._size, self._groups = weight.bits, weight.group_size, int(weight.scales.shape[1])
        mins = _beyond_centre(weight)
        # scales that are float16 by origin are kept so: they are a ninth of what is read
        exact = all(torch.equal(held, held.half().float()) for held in (weight.scales, mins) if held is not None)
        self._scale, kept = (F16, torch.float16) if exact else (F32, torch.float32)
        # a block has whole groups
        unit = math.lcm(self._size, BYTE_DEPTH) // BYTE_DEPTH
        block = max(1, BLOCK_STEPS // unit) * unit
        panel_bytes = PANEL * (inputs * self._bits // 8 + kept.itemsize * self._groups)
        self._product = ByteProduct(multiply_groups, columns, inputs, activation, panel_bytes, block, 10)
        self.kind = f"int{weight.bits} panels, groups of {weight.group_size}"
        self.width, self.outputs = inputs, self._product.outputs
        self.packed = self._pack(by_panels(weight.values, halves), by_panels(weight.scales, halves).to(kept))
        self.mins = None
        if mins is not None:
            self.mins = by_panels(mins, halves).unflatten(0, (-1, PANEL)).transpose(1, 2).to(kept).contiguous()
        self.bias = None if bias is None else by_panels(bias.float(), halves)

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
        if self._product.gated:
            raise ValueError("a gated product's rows are not in order: it is no table")
        mins, layout = self.mins, GROUPED_4 if self._bits == 4 else GROUPED_8
        least = (0, 0) if mins is None else (mins.data_ptr(), mins.stride(0) * mins.itemsize)
        groups = (self._size, self.packed.stride(1))
        return look_up(indexes, out, self.outputs, self.width, layout, self.packed, (0, self._scale), groups, least)

    def _pack(self, values: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        """Bytes ``[panels, groups, n]``: a group's whole numbers, then its scales."""
        size, groups, panels = self._size, self._groups, scales.shape[0] // PANEL
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
        packed, mins, totals = self.packed, self.mins, 8 * self._groups
        room = max(room_bytes(self._size), ROOM_BYTES)
        own = (
            self._bits, self._scale, self._groups, self._size, packed.stride(0), packed.stride(1),
            0 if mins is None else mins.data_ptr(), 0 if mins is None else mins.stride(0) * mins.itemsize, room, totals,
        )  # fmt: skip
        return self._product(x, out, packed, self.bias, room + _TAG_BYTES + ROWS * totals, own)


def _beyond_centre(weight: QuantizedWeight) -> torch.Tensor | None:
    """What is to be subtracted once whole numbers are taken from the middle of their range; None for nothing."""
    centre = weight.scales * CENTRE[4] if weight.bits == 4 else torch.zeros_like(weight.scales)
    mins = torch.zeros_like(centre) if weight.mins is None else weight.mins
    return None if torch.equal(mins, centre) else mins - centre
