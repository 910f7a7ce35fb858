"""Whole numbers packed into int32 words."""

from __future__ import annotations

import torch


def packed_bytes(words: torch.Tensor) -> torch.Tensor:
    """The bytes of int32 words, the lowest first: ``[R, C] -> uint8 [R, 4 C]``. Two numbers of 4 bits in each, the
    first in its low half, as :class:`~octavo.model.quantized.QuantizedWeight` has them too."""
    return words.contiguous().view(torch.uint8)


def unpacked(words: torch.Tensor, bits: int) -> torch.Tensor:
    """The numbers in int32 words, the lowest bits first: ``[R, C] -> uint8 [R, C * 32 / bits]``, for 4 or 8 bits."""
    found = packed_bytes(words)
    return found if bits == 8 else torch.stack((found & 15, found >> 4), dim=2).flatten(1)


def packed_nibbles(numbers: torch.Tensor) -> torch.Tensor:
    """Numbers from 0 to 15, two to a byte: ``uint8 [N, K] -> uint8 [N, K / 2]``, the even one in the low half."""
    return numbers[:, ::2] | numbers[:, 1::2] << 4


def signed_bytes(numbers: torch.Tensor) -> torch.Tensor:
    """Numbers from 0 to 255 less 128: uint8 -> int8."""
    return (numbers ^ 128).view(torch.int8)


def with_zeros(scales: torch.Tensor, zeros: torch.Tensor) -> torch.Tensor | None:
    """What to take from ``scales * q`` for zero points ``[N, G]``; None where they are all zero."""
    return scales * zeros.float() if bool(zeros.any()) else None
