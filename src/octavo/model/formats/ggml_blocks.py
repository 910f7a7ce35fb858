"""ggml's blocks of quantised numbers, as quantised weights.

A row is a sequence of blocks, each with scales of its own. What is read: blocks of 32 numbers (Q4_0, Q4_1, Q5_0, Q5_1,
Q8_0), and "K" blocks of 256, cut into groups of 32 whose scales and minimums are themselves whole numbers of 6 bits
(Q4_K, Q5_K) or groups of 16 with scales of 8 bits (Q6_K). All but the last are what they were, number by number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from octavo.model.formats.packing import packed_nibbles
from octavo.model.quantized import QuantizedWeight, quantize


@dataclass(frozen=True, slots=True)
class Block:
    """A kind of block.

    Args:
        numbers: how many it holds.
        nbytes: its size.
        decode: from blocks uint8 ``[N, blocks, nbytes]``.
        exact: whether the result stands for exactly what the blocks do.
    """

    numbers: int
    nbytes: int
    decode: Callable[[torch.Tensor], QuantizedWeight]
    exact: bool = True


def _half(blocks: torch.Tensor, at: int) -> torch.Tensor:
    """The float16 at a place of each block ``[N, blocks]``."""
    return blocks[:, :, at : at + 2].contiguous().view(torch.float16).squeeze(2).float()


def _nibbles(parts: torch.Tensor) -> torch.Tensor:
    """All low halves, then all high ones: ``[..., n] -> [..., 2 n]``."""
    return torch.cat((parts & 15, parts >> 4), dim=-1)


def _four(numbers: torch.Tensor, scales: torch.Tensor, mins: torch.Tensor) -> QuantizedWeight:
    rows = numbers.shape[0]
    return QuantizedWeight(packed_nibbles(numbers.reshape(rows, -1)), scales, mins, 4)


def _eight(numbers: torch.Tensor, scales: torch.Tensor, mins: torch.Tensor | None) -> QuantizedWeight:
    return QuantizedWeight(numbers.to(torch.int8).reshape(numbers.shape[0], -1), scales, mins, 8)


def _q4_0(blocks: torch.Tensor) -> QuantizedWeight:
    scales = _half(blocks, 0)
    return _four(_nibbles(blocks[:, :, 2:]), scales, scales * 8)


def _q4_1(blocks: torch.Tensor) -> QuantizedWeight:
    return _four(_nibbles(blocks[:, :, 4:]), _half(blocks, 0), -_half(blocks, 2))


def _fifth_bits(words: torch.Tensor) -> torch.Tensor:
    """The bits of 4 bytes, the lowest first, each as 16: ``[N, blocks, 4] -> [N, blocks, 32]``."""
    shifts = torch.arange(8, dtype=torch.uint8)
    return ((words.unsqueeze(3) >> shifts & 1) << 4).flatten(2)


def _q5_0(blocks: torch.Tensor) -> QuantizedWeight:
    numbers = (_nibbles(blocks[:, :, 6:]) | _fifth_bits(blocks[:, :, 2:6])).to(torch.int8) - 16
    return _eight(numbers, _half(blocks, 0), None)


def _q5_1(blocks: torch.Tensor) -> QuantizedWeight:
    numbers = _nibbles(blocks[:, :, 8:]) | _fifth_bits(blocks[:, :, 4:8])
    return _eight(numbers, _half(blocks, 0), -_half(blocks, 2))


def _q8_0(blocks: torch.Tensor) -> QuantizedWeight:
    return _eight(blocks[:, :, 2:].contiguous().view(torch.int8), _half(blocks, 0), None)


def _k_scales(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and minimums of a K block's eight groups ``[N, 8 * blocks]``: of the first four whole in the first eight
    of twelve bytes; of the others the low four bits in the last four bytes, the high two on top of the first four's."""
    packed = blocks[:, :, 4:16]
    first, second, last = packed[:, :, :4], packed[:, :, 4:8], packed[:, :, 8:]
    scales = torch.cat((first & 63, last & 15 | first >> 6 << 4), dim=2)
    mins = torch.cat((second & 63, last >> 4 | second >> 6 << 4), dim=2)
    scale, least = _half(blocks, 0).unsqueeze(2), _half(blocks, 2).unsqueeze(2)
    return (scales.float() * scale).flatten(1), (mins.float() * least).flatten(1)


def _q4_k(blocks: torch.Tensor) -> QuantizedWeight:
    return _four(_nibbles(blocks[:, :, 16:].unflatten(2, (4, 32))), *_k_scales(blocks))


def _q5_k(blocks: torch.Tensor) -> QuantizedWeight:
    low = _nibbles(blocks[:, :, 48:].unflatten(2, (4, 32))).unflatten(3, (2, 32)).flatten(2, 3)
    shifts = torch.arange(8, dtype=torch.uint8).unsqueeze(1)
    high = (blocks[:, :, 16:48].unsqueeze(2) >> shifts & 1) << 4
    return _eight(low | high, *_k_scales(blocks))


def _q6_k(blocks: torch.Tensor) -> QuantizedWeight:
    """In groups of 16, which are too small to be computed with: rounded again, to 8 bits in groups of 32."""
    low = _nibbles(blocks[:, :, :128].unflatten(2, (2, 64))).unflatten(3, (4, 32))
    shifts = torch.arange(0, 8, 2, dtype=torch.uint8).unsqueeze(1)
    high = (blocks[:, :, 128:192].unflatten(2, (2, 1, 32)) >> shifts & 3) << 4
    numbers = (low | high).to(torch.int8) - 32
    scales = blocks[:, :, 192:208].contiguous().view(torch.int8).float() * _half(blocks, 208).unsqueeze(2)
    full = numbers.flatten(2).unflatten(2, (16, 16)) * scales.unsqueeze(3)
    return quantize(full.flatten(1), 8, 32)


BLOCKS = {
    "Q4_0": Block(32, 18, _q4_0),
    "Q4_1": Block(32, 20, _q4_1),
    "Q5_0": Block(32, 22, _q5_0),
    "Q5_1": Block(32, 24, _q5_1),
    "Q8_0": Block(32, 34, _q8_0),
    "Q4_K": Block(256, 144, _q4_k),
    "Q5_K": Block(256, 176, _q5_k),
    "Q6_K": Block(256, 210, _q6_k, exact=False),
}
"""ggml's name of a kind -> how it is read."""
