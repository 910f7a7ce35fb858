"""The random numbers of sampling on a GPU: the generator that :mod:`octavo.kernels.noise` specifies, word for word.

One Philox call serves four neighbouring tokens, so a tile of the vocabulary is held as four tensors, of the first,
second, third and fourth token of each quad: no word has to move to another thread.
"""

from __future__ import annotations

import triton
import triton.language as tl

from octavo.kernels import noise

GOLDEN = tl.constexpr(noise.GOLDEN)
FINALIZE_1 = tl.constexpr(noise.FINALIZE_1)
FINALIZE_2 = tl.constexpr(noise.FINALIZE_2)
MULTIPLIER_0 = tl.constexpr(noise.MULTIPLIER_0)
MULTIPLIER_1 = tl.constexpr(noise.MULTIPLIER_1)
WEYL_0 = tl.constexpr(noise.WEYL_0)
WEYL_1 = tl.constexpr(noise.WEYL_1)
ROUNDS = tl.constexpr(noise.ROUNDS)
SAMPLER_DOMAIN = tl.constexpr(noise.SAMPLER_DOMAIN)
UNIFORM_MAX = tl.constexpr(noise.UNIFORM_MAX)

LOG2_E = tl.constexpr(1.4426950408889634)

SERIES_END = tl.constexpr(0.1875)
SERIES_0 = tl.constexpr(1.4426952149641015)
SERIES_1 = tl.constexpr(0.7213018523753465)
SERIES_2 = tl.constexpr(0.48279658260177205)
SERIES_3 = tl.constexpr(0.33356210804226294)
SERIES_4 = tl.constexpr(0.4395285155133745)


@triton.jit
def finalize(z):
    """SplitMix64's output function; uint64."""
    z = (z ^ (z >> 30)) * FINALIZE_1
    z = (z ^ (z >> 27)) * FINALIZE_2
    return z ^ (z >> 31)


@triton.jit
def fold_key(seed, index):
    """Philox's two key words, uint32, for a seed and a noise index, both 64 bits."""
    key = finalize(seed.to(tl.uint64) ^ finalize(index.to(tl.uint64) + GOLDEN))
    return key.to(tl.uint32), (key >> 32).to(tl.uint32)


@triton.jit
def philox(c0, c1, c2, c3, k0, k1):
    """Philox-4x32-10; counters and keys are uint32, scalars or tensors. Four uint32 of the counters' shape.

    The two halves of a product come from one multiplication of 64 bits (``IMAD.WIDE``). The keys are scalars, and so
    are all counter words but the first: their part of the first two rounds is done once for a whole tile.
    """
    for _ in tl.static_range(ROUNDS):
        p0 = c0.to(tl.uint64) * MULTIPLIER_0
        p1 = c2.to(tl.uint64) * MULTIPLIER_1
        c0, c1 = (p1 >> 32).to(tl.uint32) ^ c1 ^ k0, p1.to(tl.uint32)
        c2, c3 = (p0 >> 32).to(tl.uint32) ^ c3 ^ k1, p0.to(tl.uint32)
        k0 += WEYL_0
        k1 += WEYL_1
    return c0, c1, c2, c3


@triton.jit
def quad_words(quads, position, k0, k1):
    """The words of tokens ``4 quads + 0``, ``1``, ``2`` and ``3`` at a position: four uint32 of ``quads``' shape.

    ``quads`` is an int32 tensor; ``position`` a scalar of 64 bits, ``k0`` and ``k1`` :func:`fold_key`'s."""
    where = position.to(tl.uint64)
    low, high = where.to(tl.uint32), (where >> 32).to(tl.uint32)
    return philox(quads.to(tl.uint32), low, high, (where & 0).to(tl.uint32) + SAMPLER_DOMAIN, k0, k1)


@triton.jit
def token_words(tokens, position, k0, k1):
    """The words of any tokens, int32, at a position: uint32 of their shape. Four times :func:`quad_words`' work."""
    words = quad_words(tokens // 4, position, k0, k1)
    place = tokens % 4
    return tl.where(place < 2, tl.where(place == 0, words[0], words[1]), tl.where(place == 2, words[2], words[3]))


if triton.knobs.runtime.interpret:

    @triton.jit
    def log2(x):
        """The logarithm to base 2; of 0, minus infinity."""
        return tl.log2(x)

else:

    @triton.jit
    def log2(x):
        """The logarithm to base 2 by the special function unit: within 2**-22 of it, or of it times so much, whichever
        is more. (Triton's own is exact to a unit in the last place, and takes some twenty instructions.)"""
        return tl.inline_asm_elementwise(
            "lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )


@triton.jit
def exponential(word):
    """``-log2(1 - v)``, float32, to within 1e-6 of itself, where ``v`` is the specification's number of a word: what an
    exponential distribution of rate log 2 gives.

    Small numbers, which decide a draw, come of a polynomial, for the logarithm of a number near 1 is good to so many
    bits behind the point, not to so many bits. It is the one of degree 4 whose greatest relative error on [0, 3/16]
    is least (Remez): 1.2e-7.
    """
    v = tl.minimum(word.to(tl.float32) * 2.3283064365386963e-10 + 1.1641532182693481e-10, UNIFORM_MAX)
    series = tl.fma(v, SERIES_4, SERIES_3)
    series = tl.fma(v, series, SERIES_2)
    series = tl.fma(v, series, SERIES_1)
    series = tl.fma(v, series, SERIES_0)
    return tl.where(v < SERIES_END, v * series, -log2(1 - v))


@triton.jit
def gumbel2(word):
    """Gumbel noise of a word in units of log 2, and less a constant (log2(log(2))) that is the same for all; float32,
    to within 2**-21 of itself and 2e-6."""
    return -log2(exponential(word))
