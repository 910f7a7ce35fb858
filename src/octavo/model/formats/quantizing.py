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
    group_sizes: tuple[int, ...]  #: inputs that share a scale: the first that divides them; none: all of an output

    def quantize(self, weight: torch.Tensor) -> QuantizedWeight:
        """A matrix in these bits.

        Raises:
            ValueError: no group size divides its inputs, or it holds what is not finite.
        """
        if not self.group_sizes:
            return quantize(weight, self.bits)
        inputs = weight.shape[1]
        size = next((size for size in self.group_sizes if inputs % size == 0), None)
        if size is None:
            raise ValueError(
                f"its {inputs} inputs cannot be cut into groups of {self.group_sizes[-1]}: int8 needs none"
            )
        return quantize(weight, self.bits, size, centred=True)

    def most_bits(self, inputs: int) -> float:
        """What a weight takes at most, of a matrix of so many inputs or more: a group has a scale, and perhaps a sum
        beside it."""
        return self.bits + 64 / min(self.group_sizes, default=inputs)


_BY_OUTPUT = Scheme(8, ())

SCHEMES = {"int8": _BY_OUTPUT, "int4": Scheme(4, (64, 32))}
"""By what ``EngineConfig.quantization`` says.

Groups of 64 around zero read 4.25 bits a weight. Measured on the bundled model, by the divergence of next-token
distributions from those of full weights: groups of 32 diverge a fifth less, of 128 a sixth more, and those with a
minimum of their own a seventh less; perplexity tells none of them apart. Groups of 32 take 1.6 times as long where many
rows are computed.
"""

_ENDS = ("embed_tokens", "lm_head")
_OUTPUT = "o_proj"


def scheme_of(module: str, quantization: str) -> Scheme:
    """How a matrix is quantised. Embeddings and head always have 8 bits: of a small model they are a large part, and
    the only one whose rounding nothing after it makes good."""
    return _BY_OUTPUT if module.endswith(_ENDS) else SCHEMES[quantization]


def better_in_full(module: str, quantization: str) -> bool:
    """Whether a matrix had better not be rounded where it is quick in full: what attention writes to the residual
    stream, with int8.

    Measured on a 0.6B shape of random weights: of all that int8 takes from the likeness of the logits, a third is the
    rounding of this matrix and of its inputs, and it is an eighth of a layer.
    """
    return quantization == "int8" and module.endswith(_OUTPUT)


class QuantizingWeights:
    """The weights of a checkpoint, each matrix in few bits as soon as it is read: of what is not, there is never more
    than a part of one matrix in memory.

    Args:
        inner: the checkpoint. What it holds in so many bits already is taken as it is.
        quantization: a key of :data:`SCHEMES`.
        full_is_quick: matrices that are :func:`better_in_full` stay so.
    """

    def __init__(self, inner: Weights, quantization: str, full_is_quick: bool = False) -> None:
        self.inner = inner
        self.quantization = quantization
        self.full_is_quick = full_is_quick

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
        """As :meth:`Weights.weight`, in few bits but for what stays in full.

        Raises:
            ConfigError: it is stored in other bits.
            WeightsError: as there; or it holds what is not finite.
        """
        weight, scheme = self.inner.weight(module, shape), scheme_of(module, self.quantization)
        if isinstance(weight, QuantizedWeight):
            if weight.bits != scheme.bits:
                raise ConfigError(
                    f"quantization={self.quantization!r} contradicts the checkpoint, which holds {module} in "
                    f"{weight.bits} bits: leave quantization out"
                )
            return weight
        if self.full_is_quick and better_in_full(module, self.quantization):
            return weight
        try:
            return scheme.quantize(weight)
        except ValueError as error:
            raise WeightsError(f"{module} cannot be quantised: {error}") from error
