"""The random numbers of sampling: a counter-based generator, specified once, as integer code.

Every number is a function of (seed, sequence index, position, token id) and of nothing else, so the same seed gives
the same noise whoever shares the batch and on whichever backend. The generator is Philox-4x32-10 (Salmon, Moraes,
Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011).

The specification, all arithmetic on unsigned words that wrap around:

- ``finalize(z)``, 64 bits: ``z ^= z >> 30; z *= 0xBF58476D1CE4E5B9; z ^= z >> 27; z *= 0x94D049BB133111EB;
  z ^= z >> 31`` (the output function of SplitMix64; a bijection).
- **Key**, 64 bits: ``finalize(seed ^ finalize(index + 0x9E3779B97F4A7C15))``; its low word is Philox's first key word,
  its high word the second. For a fixed index it is a bijection of the seed, and for a fixed seed one of the index.
- **Counter**, four words of 32 bits: ``(token // 4, low word of position, high word of position, 0)``. The last word
  separates uses; 0 is the sampler's. Token ``t`` takes word ``t % 4`` of the output.
- **Uniform**: the word ``w`` becomes ``v = min(float32(w) * 2**-32 + 2**-33, 1 - 2**-24)`` in float32, ``float32(w)``
  rounded to nearest even: ``2**-33 <= v < 1``, never 0 and never 1.
- **Gumbel noise**: ``-log(-log(u))`` with ``u = 1 - v``, computed as ``-log(-log1p(-v))`` because the large values,
  which decide a draw, come of u near 1. It lies in [-2.82, 22.88]. The integers are bit-identical on every backend; the
  logarithms agree to a few units in the last place.
"""

from __future__ import annotations

import torch

GOLDEN = 0x9E3779B97F4A7C15
FINALIZE_1 = 0xBF58476D1CE4E5B9
FINALIZE_2 = 0x94D049BB133111EB
MULTIPLIER_0 = 0xD2511F53
MULTIPLIER_1 = 0xCD9E8D57
WEYL_0 = 0x9E3779B9
WEYL_1 = 0xBB67AE85
ROUNDS = 10
SAMPLER_DOMAIN = 0
"""The last counter word for the noise that draws tokens."""

UNIFORM_MAX = 1.0 - 2.0**-24
"""The largest ``v`` a word becomes."""

_MASK32 = (1 << 32) - 1
_MASK64 = (1 << 64) - 1


def finalize(z: int) -> int:
    """SplitMix64's output function on a 64-bit word."""
    z &= _MASK64
    z = ((z ^ (z >> 30)) * FINALIZE_1) & _MASK64
    z = ((z ^ (z >> 27)) * FINALIZE_2) & _MASK64
    return z ^ (z >> 31)


def fold_key(seed: int, index: int) -> tuple[int, int]:
    """Philox's two key words for (seed, sequence index); both are taken modulo 2**64."""
    key = finalize((seed & _MASK64) ^ finalize(index + GOLDEN))
    return key & _MASK32, key >> 32


def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Philox-4x32-10 on Python's integers: what every other implementation is tested against."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        p0, p1 = MULTIPLIER_0 * c0, MULTIPLIER_1 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & _MASK32, (p0 >> 32) ^ c3 ^ k1, p0 & _MASK32
        k0, k1 = (k0 + WEYL_0) & _MASK32, (k1 + WEYL_1) & _MASK32
    return c0, c1, c2, c3


def word(seed: int, index: int, position: int, token: int) -> int:
    """The 32-bit word of one token at one position."""
    counter = (token // 4, position & _MASK32, (position >> 32) & _MASK32, SAMPLER_DOMAIN)
    return philox(counter, fold_key(seed, index))[token % 4]


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _shift_right(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical right shift of 64-bit words held as int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _finalize(z: torch.Tensor) -> torch.Tensor:
    z = (z ^ _shift_right(z, 30)) * _signed(FINALIZE_1)
    z = (z ^ _shift_right(z, 27)) * _signed(FINALIZE_2)
    return z ^ _shift_right(z, 31)


def words(seeds: torch.Tensor, indexes: torch.Tensor, positions: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """The words of tokens ``0 .. vocab_size - 1`` for each row, by torch's integer operations.

    Args:
        seeds, indexes, positions: int64 [B]; seeds are 64-bit words held as int64.
        vocab_size: how many tokens.

    Returns:
        int64 [B, vocab_size], values in [0, 2**32).
    """
    key = _finalize(seeds ^ _finalize(indexes + _signed(GOLDEN)))[:, None]
    k0, k1 = key & _MASK32, _shift_right(key, 32)
    quads = (vocab_size + 3) // 4
    c0 = torch.arange(quads, device=seeds.device).expand(len(seeds), quads)
    c1 = (positions & _MASK32)[:, None].expand_as(c0)
    c2 = _shift_right(positions, 32)[:, None].expand_as(c0)
    c3 = torch.full_like(c0, SAMPLER_DOMAIN)
    for _ in range(ROUNDS):
        # the products wrap around as signed words; their halves are right all the same
        p0, p1 = c0 * MULTIPLIER_0, c2 * MULTIPLIER_1
        c0, c1, c2, c3 = _shift_right(p1, 32) ^ c1 ^ k0, p1 & _MASK32, _shift_right(p0, 32) ^ c3 ^ k1, p0 & _MASK32
        k0, k1 = (k0 + WEYL_0) & _MASK32, (k1 + WEYL_1) & _MASK32
    return torch.stack((c0, c1, c2, c3), dim=-1).flatten(1)[:, :vocab_size]


def gumbel(words: torch.Tensor) -> torch.Tensor:
    """Gumbel noise, float32, of 32-bit words held as int64; the same shape."""
    v = (words.to(torch.float32) * 2.0**-32 + 2.0**-33).clamp_(max=UNIFORM_MAX)
    return -torch.log(-torch.log1p(-v))
