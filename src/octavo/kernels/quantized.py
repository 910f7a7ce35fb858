"""A weight held in few bits: whole numbers, and the scales that turn them back into what they stand for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

VALUES = {8: torch.int8, 4: torch.uint8}
"""The dtype that holds values of so many bits; two of 4 bits share a byte."""


@dataclass(frozen=True, eq=False, slots=True)
class QuantizedWeight:
    """A weight ``[N, K]``, cut along K into G groups of equal size; a weight's value is ``scales * q - mins``.

    Args:
        values: the whole numbers q. For 8 bits int8 ``[N, K]``; for 4 bits uint8 ``[N, K / 2]``, each byte two of them
            from 0 to 15, that of the even input in the low half.
        scales: float32 ``[N, G]``.
        mins: float32 ``[N, G]``, or None for zeros. (A zero point z is ``mins = z * scales``; four bits around the
            middle are ``mins = 8 * scales``.)
        bits: 8 or 4.

    Raises:
        ValueError: shapes or dtypes do not go together.
    """

    values: torch.Tensor
    scales: torch.Tensor
    mins: torch.Tensor | None
    bits: int

    def __post_init__(self) -> None:
        if self.bits not in VALUES:
            raise ValueError(f"bits={self.bits!r} must be 8 or 4")
        if self.values.dim() != 2 or self.values.dtype != VALUES[self.bits] or not self.values.numel():
            raise ValueError(
                f"values are {tuple(self.values.shape)} of {self.values.dtype}: for {self.bits} bits they must be a "
                f"matrix of {VALUES[self.bits]}"
            )
        rows, inputs = self.shape
        for name, tensor in (("scales", self.scales), ("mins", self.mins)):
            if tensor is None:
                continue
            if tensor.dim() != 2 or tensor.dtype != torch.float32 or tensor.shape[0] != rows:
                raise ValueError(
                    f"{name} are {tuple(tensor.shape)} of {tensor.dtype}: they must be [{rows}, G] float32"
                )
            if tensor.shape != self.scales.shape:
                raise ValueError(f"mins are {tuple(tensor.shape)} and scales {tuple(self.scales.shape)}: one of each")
        groups = self.scales.shape[1]
        if not groups or inputs % groups or (self.bits == 4 and inputs // groups % 2):
            even = " of an even number" if self.bits == 4 else ""
            raise ValueError(f"{inputs} inputs cannot be cut into {groups} equal groups{even}")

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs, N and K."""
        rows, held = self.values.shape
        return rows, held * (8 // self.bits)

    @property
    def group_size(self) -> int:
        """Inputs of a group."""
        return self.shape[1] // int(self.scales.shape[1])

    @property
    def nbytes(self) -> int:
        """What it takes in memory."""
        return self.values.nbytes + self.scales.nbytes + (0 if self.mins is None else self.mins.nbytes)

    def integers(self) -> torch.Tensor:
        """The whole numbers, one to a byte: int8 for 8 bits, uint8 for 4 ``[N, K]``."""
        if self.bits == 8:
            return self.values
        return torch.stack((self.values & 15, self.values >> 4), dim=2).reshape(self.shape)

    def dequantized(self) -> torch.Tensor:
        """What it stands for: float32 ``[N, K]``."""
        grouped = self.integers().float().unflatten(1, (-1, self.group_size)) * self.scales.unsqueeze(2)
        if self.mins is not None:
            grouped -= self.mins.unsqueeze(2)
        return grouped.flatten(1)

    def rows(self, indexes: torch.Tensor) -> QuantizedWeight:
        """Some of its outputs, in any order: ``indexes`` int64 ``[M]``."""
        mins = None if self.mins is None else self.mins[indexes]
        return QuantizedWeight(self.values[indexes], self.scales[indexes], mins, self.bits)

    @staticmethod
    def stack(weights: Sequence[QuantizedWeight]) -> QuantizedWeight:
        """Several as one: the outputs of each after those of the one before it.

        Raises:
            ValueError: they differ in their bits, their inputs or their groups.
        """
        kinds = {(weight.bits, weight.shape[1], weight.group_size) for weight in weights}
        if len(kinds) != 1:
            raise ValueError(f"weights of (bits, inputs, group size) {sorted(kinds)} cannot be one weight")
        mins = None
        if any(weight.mins is not None for weight in weights):
            mins = torch.cat(
                [torch.zeros_like(weight.scales) if weight.mins is None else weight.mins for weight in weights]
            )
        values, scales = torch.cat([weight.values for weight in weights]), torch.cat([w.scales for w in weights])
        return QuantizedWeight(values, scales, mins, weights[0].bits)
