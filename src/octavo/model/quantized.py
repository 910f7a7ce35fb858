"""Making quantised weights of full ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from octavo.kernels.quantized import VALUES, QuantizedWeight

__all__ = ["QuantizedWeight", "quantize"]

_AT_ONCE = 2**18  # weights: what is widened to float32 at a time stays in a core's cache, and small beside what is kept

_LEAST_HALF = 2.0**-20
"""Down to here float16 has a number within 3%: next to 15 steps that is little, and one tiny group should not make all
scales of a matrix twice as long."""


def quantize(
    weight: torch.Tensor, bits: int, group_size: int | None = None, *, centred: bool = False
) -> QuantizedWeight:
    """The nearest weight of few bits.

    Values are rounded to the nearest of what their group's scale allows. For 8 bits the scale is the largest magnitude
    over 127, and the range is the same on both sides of zero. For 4 bits it is, for each group, whichever has the least
    squared error: the range of weights and zero in 15 steps, one of whose ends is zero; one around zero in steps of an
    eighth of the largest magnitude; or a somewhat narrower one of either kind. With ``centred`` it is one around zero.

    Args:
        weight: ``[N, K]``, of any floating-point dtype.
        bits: 8 or 4.
        group_size: inputs that share a scale; it must divide K, and for 4 bits be even [K: one scale for each output].
        centred: 4 bits are -8 to 7 in every group, and scales are float16 where it has numbers of their size: so
            a scale is all that is to be read for a group, and half as long.

    Raises:
        ValueError: an argument is not as described, or a weight is not finite.
    """
    if weight.dim() != 2 or not weight.is_floating_point() or not weight.numel():
        raise ValueError(f"a weight of {tuple(weight.shape)}, {weight.dtype} cannot be quantised: it must be a matrix")
    if bits not in (8, 4):
        raise ValueError(f"bits={bits!r} must be 8 or 4")
    rows, inputs = weight.shape
    size = inputs if group_size is None else group_size
    if size < 1 or inputs % size or (bits == 4 and size % 2):
        raise ValueError(
            f"group_size={group_size!r} cannot cut {inputs} inputs into equal groups"
            + (" of an even number" if bits == 4 else "")
        )
    part = _eight_bits if bits == 8 else _four_centred_bits if centred else _four_bits
    values = torch.empty(rows, inputs * bits // 8, dtype=VALUES[bits], device=weight.device)
    scales = torch.empty(rows, inputs // size, device=weight.device)
    mins = torch.empty_like(scales) if bits == 4 else None
    step = max(1, _AT_ONCE // inputs)
    for start in range(0, rows, step):
        some = slice(start, start + step)
        made = part(weight[some].float().unflatten(1, (-1, size)))
        values[some], scales[some] = made.values, made.scales
        if mins is not None and made.mins is not None:
            mins[some] = made.mins
    return QuantizedWeight(values, scales, mins, bits)


def _eight_bits(groups: torch.Tensor) -> QuantizedWeight:
    scales = _finite(groups.abs().amax(dim=2) / 127)
    values = (groups / _divisor(scales)).round_().clamp_(-127, 127)
    return QuantizedWeight(values.to(torch.int8).flatten(1), scales, None, 8)


def _four_bits(groups: torch.Tensor) -> QuantizedWeight:
    return _best_four_bits(groups, _four_bit_ranges(groups))


def _four_centred_bits(groups: torch.Tensor) -> QuantizedWeight:
    ranges = _centred_ranges(groups, (1.0, 0.92, 0.84))
    return _best_four_bits(groups, ((_shortened(scales), zeros) for scales, zeros in ranges))


def _best_four_bits(groups: torch.Tensor, ranges: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> QuantizedWeight:
    best: tuple[torch.Tensor, ...] = ()
    for scales, zeros in ranges:
        mins = zeros * scales
        values = ((groups / _divisor(_finite(scales))).round_() + zeros.unsqueeze(2)).clamp_(0, 15)
        error = (values * scales.unsqueeze(2) - mins.unsqueeze(2)).sub_(groups).square_().sum(dim=2)
        if not best:
            best = error, values, scales, mins
            continue
        better = error < best[0]
        best = (
            torch.where(better, error, best[0]),
            torch.where(better.unsqueeze(2), values, best[1]),
            torch.where(better, scales, best[2]),
            torch.where(better, mins, best[3]),
        )
    _, values, scales, mins = best
    whole = values.to(torch.uint8).flatten(1)
    return QuantizedWeight(whole[:, ::2] | whole[:, 1::2] << 4, scales.contiguous(), mins.contiguous(), 4)


def _four_bit_ranges(groups: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Scales and zero points to choose from, the latter whole numbers from 0 to 15, as other engines' files have them.

    A range somewhat narrower than the weights' own costs the outermost and gains for all others (measured on normal
    and on trained weights in groups of 32 to 128: 3 to 8% less squared error).
    """
    least, greatest = groups.aminmax(dim=2)
    low, high = least.clamp(max=0), greatest.clamp(min=0)
    for share in (1.0, 0.93):
        scales = (high - low) * share / 15
        yield scales, (low * -share / _divisor(scales).squeeze(2)).round_().clamp_(0, 15)
    yield from _centred_ranges(groups, (1.0, 0.9))


def _centred_ranges(groups: torch.Tensor, shares: Iterable[float]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Ranges around zero: there are eight steps to one side and seven to the other, and the side of the largest
    magnitude gets eight."""
    least, greatest = groups.aminmax(dim=2)
    largest = torch.where(-least > greatest, least, greatest)
    for share in shares:
        yield largest * share / -8, torch.full_like(largest, 8)


def _shortened(scales: torch.Tensor) -> torch.Tensor:
    """Scales rounded to float16, but those that it has nothing near for."""
    magnitude = scales.abs()
    fits = (magnitude >= _LEAST_HALF) & (magnitude <= torch.finfo(torch.float16).max)
    return torch.where(fits, scales.half().float(), scales)


def _divisor(scales: torch.Tensor) -> torch.Tensor:
    """Scales to divide by: where all weights of a group are alike there is nothing to divide."""
    return torch.where(scales == 0, torch.ones_like(scales), scales).unsqueeze(2)


def _finite(scales: torch.Tensor) -> torch.Tensor:
    if not bool(scales.isfinite().all()):
        raise ValueError("the weight holds values that are not finite, or too far apart: it cannot be quantised")
    return scales
