"""Products with weights in few bits, in plain torch."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from octavo.kernels.quantized import QuantizedWeight

_EXACT = 1024
"""So many products of two bytes sum up exactly in float32."""

_LEAST = 1e-30
"""A row whose largest magnitude is less is taken for zeros, in every backend."""


class QuantizedLinear:
    """``x [M, K] -> x W^T + bias [M, N]``, of any :class:`QuantizedWeight`; rows of x are rounded to 8 bits.

    Whole numbers are summed exactly, group by group, and scaled in float32: a row's result does not depend on the rows
    beside it, and with one group is the other backends' to the bit.

    Args:
        weight: the weight, kept as it is.
        bias: ``[N]``.
        activation: None, or "silu_and_mul" or "gelu_and_mul": the first half of the columns is then the gate of the
            second half, and the result is ``[M, N / 2]``.
    """

    recordable = False
    widens = True

    def __init__(
        self, weight: QuantizedWeight, bias: torch.Tensor | None = None, activation: str | None = None
    ) -> None:
        self.weight = weight
        self.bias = None if bias is None else bias.float()
        self.activation = activation

    @property
    def kind(self) -> str:
        """As in the notes."""
        return f"plain, of {self.weight.bits} bits"

    @staticmethod
    def available() -> bool:
        """It runs everywhere."""
        return True

    @staticmethod
    def serves(weight: QuantizedWeight) -> bool:
        """It serves all."""
        return True

    def rows(self, indexes: torch.Tensor) -> QuantizedWeight:
        """Some of the weight's rows."""
        return self.weight.rows(indexes)

    def __call__(self, x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """The product, in ``out`` (of any floating-point dtype) or in fresh memory of x's dtype."""
        weight, size = self.weight, self.weight.group_size
        rows, row_scales = quantized_rows(x)
        values = weight.integers()
        total = torch.zeros(x.shape[0], weight.shape[0], device=x.device)
        for group in range(weight.scales.shape[1]):
            columns = slice(group * size, (group + 1) * size)
            sums = _exact_product(rows[:, columns], values[:, columns]).float() * weight.scales[:, group]
            if weight.mins is not None:
                sums -= rows[:, columns].sum(1, keepdim=True) * weight.mins[:, group]
            total += sums
        total *= row_scales
        if self.bias is not None:
            total += self.bias
        if self.activation is not None:
            gate, up = total.chunk(2, dim=1)
            total = (F.silu(gate) if self.activation == "silu_and_mul" else F.gelu(gate, approximate="tanh")) * up
        return total.to(x.dtype) if out is None else out.copy_(total)


def quantized_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Whole numbers from -127 to 127, as floats ``[M, K]``, and the scales ``[M, 1]`` that make them the rows of x
    again. What is not finite makes its row's scale so."""
    x = x.float()
    largest = x.abs().amax(dim=1, keepdim=True)
    zeros, top = torch.zeros_like(largest), torch.full_like(largest, 127)
    factors = torch.where(largest < _LEAST, zeros, top / largest)
    scales = torch.where(largest < _LEAST, zeros, largest / top)
    return (x * factors).round_().nan_to_num_(0.0, 0.0, 0.0), scales


def _exact_product(rows: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """``rows values^T`` of whole numbers, in float64."""
    parts = zip(rows.split(_EXACT, dim=1), values.split(_EXACT, dim=1), strict=True)
    products = [(left @ right.float().T).double() for left, right in parts]
    return products[0] if len(products) == 1 else torch.stack(products).sum(0)
