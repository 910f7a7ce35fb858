"""The generator against its published answers, and every implementation against the one on Python's integers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.kernels import noise

WORDS = st.integers(-(2**63), 2**63 - 1)

# of the Random123 distribution's known-answer file: counter, key, output
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "output"), KNOWN)
def test_philox_gives_its_published_answers(counter: tuple, key: tuple, output: tuple) -> None:
    assert noise.philox(counter, key) == output


def test_finalize_gives_splitmix64s_published_answers() -> None:
    # SplitMix64 seeded with 1234567: the finalizer of seed + n * golden ratio
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert [noise.finalize(1234567 + n * noise.GOLDEN) for n in range(1, 5)] == expected


@settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(st.tuples(WORDS, st.integers(0, 2**40), st.integers(0, 2**40)), min_size=1, max_size=4),
    vocab=st.integers(1, 70),
)
def test_torchs_words_are_pythons(rows: list[tuple[int, int, int]], vocab: int) -> None:
    words = noise.words(*(torch.tensor(column) for column in zip(*rows, strict=True)), vocab)
    assert words.shape == (len(rows), vocab)
    for row, (seed, index, position) in zip(words.tolist(), rows, strict=True):
        assert row == [noise.word(seed, index, position, token) for token in range(vocab)]


@given(seed=WORDS, index=st.integers(0, 2**32))
def test_siblings_and_neighbouring_seeds_have_other_keys(seed: int, index: int) -> None:
    key = noise.fold_key(seed, index)
    assert key != noise.fold_key(seed, index + 1)
    assert key != noise.fold_key(seed + 1, index)
    assert noise.fold_key(seed, index) == noise.fold_key(seed & (2**64 - 1), index)


def test_noise_is_finite_at_both_ends_and_falls_with_the_word() -> None:
    words = torch.tensor([0, 1, 2, 2**24, 2**31, 2**32 - 2, 2**32 - 1])
    drawn = noise.gumbel(words)
    assert drawn.isfinite().all()
    assert (drawn[:-1] >= drawn[1:]).all()
    assert drawn[0].item() == pytest.approx(33 * math.log(2), rel=1e-6)
    assert drawn[-1].item() == pytest.approx(-math.log(24 * math.log(2)), rel=1e-6)


def test_noise_is_gumbels_distribution() -> None:
    count = 1 << 18
    drawn = noise.gumbel(noise.words(torch.tensor([7]), torch.tensor([0]), torch.tensor([3]), count))[0].double()
    assert drawn.mean().item() == pytest.approx(0.5772156649, abs=5 * 1.2825 / math.sqrt(count))
    assert drawn.std().item() == pytest.approx(math.pi / math.sqrt(6), rel=0.01)
    # Kolmogorov and Smirnov's distance to exp(-exp(-x)); 1.95 / sqrt(n) is passed once in a thousand times
    order = drawn.sort().values
    steps = torch.arange(1, count + 1, dtype=torch.float64) / count
    assert ((-(-order).exp()).exp() - steps).abs().max().item() < 1.95 / math.sqrt(count)
