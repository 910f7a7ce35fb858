"""Matrix products of bytes: weights with a scale for each output, activations with one for each row.

The scheme is that of LLM.int8() (Dettmers et al., 2022) without its outliers: a row's scale is found when the row is
computed with, sums are integers, and each is multiplied by both scales when it is written.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from octavo.kernels.cpu.byte_linear import OUT_DTYPE, OWN, ROOM_BYTES, SHARED, ByteProduct, by_panels, byte_tasks
from octavo.kernels.cpu.emitter import F32
from octavo.kernels.cpu.int8_panels import BYTE_DEPTH, MOST_INPUTS, QUAD, SHIFTED, byte_product, write_byte_panel
from octavo.kernels.cpu.jit import DISABLED, device, kernel
from octavo.kernels.cpu.launch import SCRATCH, SCRATCH_STRIDE, TASK, WORKER
from octavo.kernels.cpu.linear import BLOCK_STEPS, KIND, STEP_BYTES, STEPS, WEIGHT, X_STRIDE
from octavo.kernels.cpu.look_up import QUADS, look_up
from octavo.kernels.cpu.panels import PANEL
from octavo.kernels.cpu.words import fetch_add, load_i64
from octavo.kernels.quantized import QuantizedWeight

SCALES, SHIFTS = range(OWN, OWN + 8 * 2, 8)


@device
def _product(p: int, memory: int, x: int, rows: int, panel: int, step: int, some: int, sums: int, ahead: int) -> None:
    weight = load_i64(p + WEIGHT) + (panel * load_i64(p + STEPS) + step) * STEP_BYTES
    shifts = load_i64(p + SHIFTS) + panel * 4 * PANEL
    byte_product(x, load_i64(p + X_STRIDE), rows, weight, some, sums, step, shifts, ahead)


@device
def _write(p: int, panel: int, sums: int, rows: int, x_scales: int, bias: int, target: int, stride: int) -> None:
    scales = load_i64(p + SCALES) + panel * 4 * PANEL
    write_byte_panel(load_i64(p + OUT_DTYPE), load_i64(p + KIND), sums, rows, x_scales, scales, bias, target, stride)


_tasks = byte_tasks(_product, _write)


@device
def multiply_bytes_tasks(p: int, counter: int, memory: int, shared: int) -> int:
    """Take tasks until none is left; returns how many. Where rows are not made bytes here, they lie at ``shared``."""
    return int(_tasks(p, counter, memory, memory + ROOM_BYTES, shared))


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
        steps = -(-inputs // BYTE_DEPTH)
        block = -(-steps // -(-steps // BLOCK_STEPS))
        self._product = ByteProduct(multiply_bytes, columns, inputs, activation, steps * STEP_BYTES, block, 2)
        self.width, self.outputs = inputs, self._product.outputs
        halves = 1 if activation is None else 2
        rows = F.pad(by_panels(weight.values, halves), (0, -inputs % BYTE_DEPTH))
        # four neighbouring inputs move as one
        tiles = rows.view(torch.int32).view(-1, 2, PANEL // 2, steps, BYTE_DEPTH // QUAD)
        self.packed = tiles.permute(0, 3, 1, 4, 2).contiguous()
        self.scales = by_panels(weight.scales[:, 0], halves)
        self.bias = None if bias is None else by_panels(bias.float(), halves)
        self._shifts = rows.sum(1, dtype=torch.int32).mul_(-128) if SHIFTED else None

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
        if self._product.gated:
            raise ValueError("a gated product's rows are not in order: it is no table")
        return look_up(indexes, out, self.outputs, self.width, QUADS, self.packed, (self.scales.data_ptr(), F32))

    def __call__(self, x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """The product, in ``out`` (of any floating-point dtype up to float32) or in fresh memory of x's dtype.

        Raises:
            ValueError: a tensor's shape, dtype or layout is not as described.
        """
        own = (self.scales.data_ptr(), 0 if self._shifts is None else self._shifts.data_ptr())
        return self._product(x, out, self.packed, self.bias, ROOM_BYTES, own)
