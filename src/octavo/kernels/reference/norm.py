"""Root-mean-square normalisation (Zhang and Sennrich, 2019)."""

from __future__ import annotations

import torch


def normalize(x: torch.Tensor, weight: torch.Tensor, eps: float, offset: float = 0.0) -> torch.Tensor:
    """``x / rms(x) * (offset + weight)`` over the last dimension, in float32."""
    x = x.float()
    scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
    return x * scale * (offset + weight.float())


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor, offset: float = 0.0) -> torch.Tensor:
    """``out = x / rms(x) * (offset + weight)``; x, out [T, H], weight [H]."""
    out.copy_(normalize(x, weight, eps, offset))
    return out


def add_rms_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    out: torch.Tensor,
    offset: float = 0.0,
) -> torch.Tensor:
    """``residual += x`` in place, rounded to its dtype; ``out`` is the norm of that. All [T, H], weight [H]."""
    residual.add_(x)
    return rms_norm(residual, weight, eps, out, offset)
