"""The generator in Triton against the specification."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from hypothesis import example, given, settings
from hypothesis import strategies as st

from octavo.kernels import noise
from octavo.kernels.triton.noise import fold_key, gumbel2, quad_words

WORDS = st.integers(-(2**63), 2**63 - 1)


@triton.jit
def words_kernel(seeds, indexes, positions, out, num_quads, QUADS: tl.constexpr):
    row = tl.program_id(0)
    k0, k1 = fold_key(tl.load(seeds + row), tl.load(indexes + row))
    quads = tl.arange(0, QUADS)
    words = quad_words(quads, tl.load(positions + row), k0, k1)
    for i in tl.static_range(4):
        tl.store(out + (row * num_quads + quads) * 4 + i, words[i].to(tl.int64), mask=quads < num_quads)


@triton.jit
def gumbel_kernel(words, out, count, BLOCK: tl.constexpr):
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    found = gumbel2(tl.load(words + places, mask=places < count, other=0).to(tl.uint32))
    tl.store(out + places, found, mask=places < count)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(WORDS, WORDS, WORDS), min_size=1, max_size=3), st.integers(1, 32))
@example([(2**63 - 1, -1, -(2**63)), (0, 0, 0)], 2)
def test_words_are_the_specifications(rows: list[tuple[int, int, int]], quads: int) -> None:
    columns = [torch.tensor(column) for column in zip(*rows, strict=True)]
    out = torch.full((len(rows), 4 * quads), -1)
    words_kernel[(len(rows),)](*columns, out, quads, QUADS=32)
    assert torch.equal(out, noise.words(*columns, 4 * quads))
    for row, (seed, index, position) in zip(out.tolist(), rows, strict=True):
        token = 4 * quads - 1
        assert row[token] == noise.word(seed, index, position, token)


def test_noise_is_gumbels_to_a_few_millionths() -> None:
    edges = [0, 1, 2, 3, 2**8, 2**24, 2**32 - 1, 2**32 - 2, 2**32 - 129, int(0.1875 * 2**32), 3 * 2**30]
    words = torch.cat((torch.tensor(edges), torch.randint(0, 2**32, (8000,)), torch.randint(0, 2**20, (181,))))
    out = torch.full(words.shape, math.nan)
    gumbel_kernel[(1,)](words, out, len(words), BLOCK=8192)
    v = (words.to(torch.float32) * 2.0**-32 + 2.0**-33).clamp(max=noise.UNIFORM_MAX).double()
    exact = -torch.log(-torch.log1p(-v))
    # in units of log 2, and less a constant
    torch.testing.assert_close((out.double() - math.log2(math.log(2))) * math.log(2), exact, rtol=0, atol=2.5e-6)
    torch.testing.assert_close(noise.gumbel(words).double(), exact, rtol=0, atol=2.5e-6)
