"""How near to float64 a kernel's result must come."""

from __future__ import annotations

import math

import torch

HALF_UNIT = {torch.float32: 2e-6, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
"""Half a unit in the last place, relative; of float32 what sums on the way lose."""

DTYPES = tuple(HALF_UNIT)


def close(result: torch.Tensor, expected: torch.Tensor, slack: float = 1.1) -> bool:
    """Equal to float64 up to the rounding of the result, and a little for what float32 lost before."""
    unit = HALF_UNIT[result.dtype]
    return bool(((result.double() - expected).abs() <= slack * unit * expected.abs() + 2e-6 + unit * 1e-3).all())


def poisoned(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    """NaN, to be overwritten."""
    return torch.full(shape, math.nan, dtype=dtype)
