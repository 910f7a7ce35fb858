"""What the device attains at the simplest work: every floor is computed with these, not with a data sheet's figures."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from gpu.timing import Clock


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Rates, all in units a second."""

    copy: float  #: bytes read plus bytes written by a large copy
    read: float  #: bytes read by a large sum
    matmul: float  #: floating-point operations of a large bfloat16 product


def measure_ceilings(clock: Clock, device: torch.device, *, tiny: bool = False) -> Ceilings:
    """A copy and a sum of 2 GiB, and a product of 8192 x 8192 matrices."""
    count, width = (1 << 16, 64) if tiny else (1 << 30, 8192)
    return Ceilings(*_memory(clock, device, count), _matmul(clock, device, width))


def _memory(clock: Clock, device: torch.device, count: int) -> tuple[float, float]:
    source = torch.randn(count, device=device).to(torch.bfloat16)
    target, words = torch.empty_like(source), source.view(torch.int32)
    num_bytes = source.numel() * source.element_size()
    copy = clock.time([lambda: target.copy_(source)])
    read = clock.time([lambda: words.sum(dtype=torch.int64)])
    return 2 * num_bytes / copy.median, num_bytes / read.median


def _matmul(clock: Clock, device: torch.device, width: int) -> float:
    left, right = (torch.randn(width, width, device=device).to(torch.bfloat16) for _ in range(2))
    out = torch.empty_like(left)
    return 2 * width**3 / clock.time([lambda: torch.mm(left, right, out=out)]).median
