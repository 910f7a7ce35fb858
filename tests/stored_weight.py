"""A checkpoint of one matrix."""

from __future__ import annotations

import torch

from octavo.kernels.quantized import QuantizedWeight
from octavo.model.formats.quantizing import QuantizingWeights


class Stored:
    """Answers as a checkpoint does, whatever module is asked for."""

    notes: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()

    def __init__(self, held: torch.Tensor | QuantizedWeight) -> None:
        self.held = held

    def weight(self, module: str, shape: tuple[int, int]) -> torch.Tensor | QuantizedWeight:
        return self.held

    def made(self, module: str, quantization: str, full_is_quick: bool = False) -> torch.Tensor | QuantizedWeight:
        """What becomes of it as the matrix of ``module``."""
        weights = QuantizingWeights(self, quantization, full_is_quick)  # type: ignore[arg-type]
        return weights.weight(module, self.held.shape)  # type: ignore[arg-type]
