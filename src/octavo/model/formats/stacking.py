"""Several matrices as one, whatever each is stored in."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from octavo.model.formats.weights import Weight
from octavo.model.quantized import QuantizedWeight


def stacked(parts: Sequence[Weight], dtype: torch.dtype, device: torch.device) -> Weight:
    """The outputs of each after those of the one before it: exactly what the parts are, and no view of them.

    Quantised ones of several kinds (files of mixed precision have them side by side) become one of the finest: 8 bits
    if any has them, and groups that all can be cut into. One in full among quantised ones makes all full.

    Args:
        parts: matrices of as many inputs.
        dtype: of a full result.
        device: of a full result.
    """
    quantized = [part for part in parts if isinstance(part, QuantizedWeight)]
    if len(quantized) == len(parts):
        bits = max(part.bits for part in quantized)
        size = math.gcd(*(part.group_size for part in quantized))
        return QuantizedWeight.stack([_refined(part, bits, size) for part in quantized])
    whole = torch.empty(sum(part.shape[0] for part in parts), parts[0].shape[1], dtype=dtype, device=device)
    start = 0
    for part in parts:
        rows = part.shape[0]
        whole[start : start + rows].copy_(part.dequantized() if isinstance(part, QuantizedWeight) else part)
        start += rows
    return whole


def _refined(weight: QuantizedWeight, bits: int, size: int) -> QuantizedWeight:
    """The same with more bits, in smaller groups."""
    values = weight.values if weight.bits == bits else weight.integers().view(torch.int8)
    times = weight.group_size // size
    if times == 1:
        return QuantizedWeight(values, weight.scales, weight.mins, bits)
    mins = None if weight.mins is None else weight.mins.repeat_interleave(times, dim=1)
    return QuantizedWeight(values, weight.scales.repeat_interleave(times, dim=1), mins, bits)
