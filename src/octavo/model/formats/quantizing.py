"""Weights that are made of few bits while they are read."""

from __future__ import annotations

from typing import NamedTuple

import torch

from octavo.errors import ConfigError, WeightsError
from octavo.model.formats.weights import Weight, Weights
from octavo.model.quantized import QuantizedWeight, quantize


class Scheme(NamedTuple):
    """How weights are quantised."""

    bits: int
    group_size: int | None  #: inputs that share a scale; None: all inputs of an output


SCHEMES = {"int8": Scheme(8, None)}
"""By what ``EngineConfig.quantization`` says."""


class QuantizingWeights:
    """The weights of a checkpoint, each matrix in few bits as soon as it is read: of what is not, there is never more
    than a part of one matrix in memory.

    Args:
        inner: the checkpoint. What it holds in so many bits already is taken as it is.
        quantization: a key of :data:`SCHEMES`.
    """

    def __init__(self, inner: Weights, quantization: str) -> None:
        self.inner = inner
        self.quantization = quantization

    @property
    def notes(self) -> list[str]:
        """Lines for a person."""
        return self.inner.notes

    @property
    def unread(self) -> list[str]:
        """The tensors that nobody has asked for."""
        return self.inner.unread

    def __contains__(self, name: str) -> bool:
        return name in self.inner

    def read(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """As :meth:`Weights.read`: in full."""
        return self.inner.read(name, shape)

    def weight(self, module: str, shape: tuple[int, int]) -> Weight:
        """As :meth:`Weights.weight`, in few bits.

        Raises:
            ConfigError: it is stored in other bits.
            WeightsError: as there; or it holds what is not finite.
        """
        weight, scheme = self.inner.weight(module, shape), SCHEMES[self.quantization]
        if isinstance(weight, QuantizedWeight):
            if weight.bits != scheme.bits:
                raise ConfigError(
                    f"quantization={self.quantization!r} contradicts the checkpoint, which holds {module} in "
                    f"{weight.bits} bits: leave quantization out"
                )
            return weight
        try:
            return quantize(weight, scheme.bits, scheme.group_size)
        except ValueError as error:
            raise WeightsError(f"{module} cannot be quantised: {error}") from error
