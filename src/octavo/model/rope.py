"""The table of rotary angles that the attention kernels read."""

from __future__ import annotations

import math

import torch

from octavo.model.config import RopeConfig

_STRIDE = 1024
"""Positions computed at once. Always as many: the last bit of a vectorised power may depend on the vector's length,
and a table that has grown must begin with the bits of the shorter one."""


def cos_sin_table(rope: RopeConfig, dim: int, length: int) -> torch.Tensor:
    """Cosines (first ``dim / 2`` columns) and sines (the others) of every position's angles.

    Row ``p`` depends on ``p`` alone, so that a token's key is the same whoever computed it, in whatever chunk. With
    "dynamic" scaling that is a choice: transformers rotates a whole forward pass by the base of its last position, and
    leaves the keys of earlier passes as they were; here the token at ``p`` gets the base of a context of ``p + 1``,
    which is what transformers gives when the tokens past the trained context come one at a time.

    Args:
        rope: the scaling.
        dim: how many dimensions of a head are rotated.
        length: positions from 0.

    Returns:
        float32 ``[length, dim]``. Computed in float32 step by step as transformers does: at position 4,000 the angle
        of another order of rounding would differ in the fourth digit.
    """
    return torch.cat([_rows(rope, dim, start) for start in range(0, length, _STRIDE)])[:length]


def _rows(rope: RopeConfig, dim: int, start: int) -> torch.Tensor:
    positions = torch.arange(start, start + _STRIDE, dtype=torch.int64)
    if rope.kind == "dynamic":
        frequencies = _dynamic_frequencies(rope, dim, positions + 1)
    else:
        frequencies = inverse_frequencies(rope, dim)
    angles = positions[:, None].float() * frequencies
    return torch.cat((angles.cos() * rope.attention_factor, angles.sin() * rope.attention_factor), dim=-1)


def inverse_frequencies(rope: RopeConfig, dim: int) -> torch.Tensor:
    """Radians a position, float32 ``[dim / 2]``; "dynamic" has those of the trained context."""
    if rope.kind == "yarn":
        return _yarn_frequencies(rope, dim)
    plain = 1.0 / rope.theta ** _exponents(dim)
    if rope.kind == "linear":
        return plain / rope.factor
    if rope.kind == "llama3":
        return _llama3_frequencies(rope, plain)
    return plain


def _exponents(dim: int) -> torch.Tensor:
    return torch.arange(0, dim, 2, dtype=torch.int64).float() / dim


def _llama3_frequencies(rope: RopeConfig, plain: torch.Tensor) -> torch.Tensor:
    """Long wavelengths are stretched by ``factor``, short ones kept, those between blended."""
    wavelength = 2 * math.pi / plain
    longest = rope.original_positions / rope.low_freq_factor
    shortest = rope.original_positions / rope.high_freq_factor
    blend = (rope.original_positions / wavelength - rope.low_freq_factor) / (
        rope.high_freq_factor - rope.low_freq_factor
    )
    blended = (1 - blend) * plain / rope.factor + blend * plain
    stretched = torch.where(wavelength > longest, plain / rope.factor, plain)
    return torch.where((wavelength >= shortest) & (wavelength <= longest), blended, stretched)


def _yarn_frequencies(rope: RopeConfig, dim: int) -> torch.Tensor:
    """Dimensions that turn more than ``beta_fast`` times within the trained context are kept, those that turn less
    than ``beta_slow`` times are interpolated, with a linear ramp over the dimensions between."""

    def dimension(turns: float) -> float:
        return dim * math.log(rope.original_positions / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    powers = rope.theta ** _exponents(dim)
    kept = 1 - ramp
    return 1.0 / (rope.factor * powers) * (1 - kept) + 1.0 / powers * kept


def _dynamic_frequencies(rope: RopeConfig, dim: int, lengths: torch.Tensor) -> torch.Tensor:
    """One row for each length; lengths up to the trained context have the plain frequencies."""
    grown = rope.factor * lengths / rope.original_positions - (rope.factor - 1)
    base = rope.theta * grown ** (dim / (dim - 2))
    scaled = 1.0 / base[:, None] ** _exponents(dim)
    return torch.where(lengths[:, None] > rope.original_positions, scaled, inverse_frequencies(rope, dim))
