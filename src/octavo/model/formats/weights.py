"""What the loader asks of a checkpoint, and the answer of a folder of safetensors."""

from __future__ import annotations

from typing import Protocol, TypeAlias

import torch

from octavo.model.checkpoint import Checkpoint
from octavo.model.quantized import QuantizedWeight

Weight: TypeAlias = torch.Tensor | QuantizedWeight
"""A matrix ``[N, K]``, in full or in few bits."""


class Weights(Protocol):
    """The weights of one checkpoint, by the names that transformers gives to modules and tensors."""

    @property
    def notes(self) -> list[str]:
        """Lines for a person: what was not taken as it is stored."""

    @property
    def unread(self) -> list[str]:
        """The tensors that nobody has asked for."""

    def __contains__(self, name: str) -> bool:
        """Whether there is such a tensor, or a quantised one in its place."""

    def read(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """A tensor in full, to be copied and not to be written to.

        Raises:
            WeightsError: it is missing, or of another shape, or of a type that is no weight's.
        """

    def weight(self, module: str, shape: tuple[int, int]) -> Weight:
        """The matrix of a module, as it is stored.

        Raises:
            WeightsError: as :meth:`read`.
            UnsupportedModelError: it is quantised in a way that Octavo has no arithmetic for.
        """


class Layout(Protocol):
    """How a kind of quantised checkpoint spells a matrix in tensors of safetensors."""

    def has(self, checkpoint: Checkpoint, module: str) -> bool:
        """Whether this module is quantised."""

    def weight(self, checkpoint: Checkpoint, module: str, shape: tuple[int, int]) -> QuantizedWeight:
        """The matrix of a module that is.

        Raises:
            WeightsError: a tensor of it is missing or of another shape.
            UnsupportedModelError: Octavo has no arithmetic for it.
        """


class SafetensorsWeights:
    """A folder of safetensors.

    Args:
        checkpoint: the tensors.
        layout: how those of quantised modules are spelt [no module is quantised].
        notes: what the choice of the layout has to say.
    """

    def __init__(self, checkpoint: Checkpoint, layout: Layout | None = None, notes: tuple[str, ...] = ()) -> None:
        self.checkpoint = checkpoint
        self.layout = layout
        self.notes = list(notes)

    @property
    def unread(self) -> list[str]:
        """The tensors that nobody has asked for. Biases of zeros, which some quantisers add, are left out."""
        names = self.checkpoint.unread
        return names if self.layout is None else [name for name in names if not self.checkpoint.is_zero_bias(name)]

    def __contains__(self, name: str) -> bool:
        return name in self.checkpoint or self._quantized(name.removesuffix(".weight"))

    def read(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """As :meth:`Weights.read`."""
        return self.checkpoint.read(name, shape)

    def weight(self, module: str, shape: tuple[int, int]) -> Weight:
        """As :meth:`Weights.weight`."""
        if self.layout is not None and self._quantized(module):
            return self.layout.weight(self.checkpoint, module, shape)
        return self.checkpoint.read(f"{module}.weight", shape)

    def _quantized(self, module: str) -> bool:
        return self.layout is not None and self.layout.has(self.checkpoint, module)
