"""Rotary position embedding (Su et al., RoFormer, 2021), in the "rotate half" layout."""

from __future__ import annotations

import torch


def rotate(x: torch.Tensor, positions: torch.Tensor, cos_sin: torch.Tensor) -> torch.Tensor:
    """x [T, heads, D] rotated at ``positions`` [T], float32; the dimensions from R on pass through."""
    half = cos_sin.shape[1] // 2
    angles = cos_sin[positions].float()[:, None, :]
    cos, sin = angles[..., :half], angles[..., half:]
    x = x.float()
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat((a * cos - b * sin, b * cos + a * sin, rest), dim=-1)


def rotary_embedding(q: torch.Tensor, k: torch.Tensor, positions: torch.Tensor, cos_sin: torch.Tensor) -> None:
    """Rotate q [T, HQ, D] and k [T, HK, D] in place; both may be strided views.

    Args:
        q: queries.
        k: keys.
        positions: int64 [T], rows of ``cos_sin``.
        cos_sin: float32 [P, R], R even and at most D: cosines in the first R/2 columns, sines in the others.
    """
    q.copy_(rotate(q, positions, cos_sin))
    k.copy_(rotate(k, positions, cos_sin))
