"""Reading memory: nothing is left out, and nothing read twice."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from kernel_case import small

from octavo.kernels.cpu.stream import STEP, checksum


@pytest.mark.parametrize("steps", [1, 3, small(4096), small(4096) + 1, small(13000)])
def test_every_word_counts_once(steps: int) -> None:
    words = torch.from_numpy(np.random.default_rng(steps).integers(-(2**63), 2**63, steps * STEP // 8))
    assert checksum(words) == int(np.bitwise_xor.reduce(words.numpy()))
    before = checksum(words)
    words[-1] ^= 1 << 40
    assert checksum(words) == before ^ (1 << 40)


def test_nothing_is_nothing() -> None:
    assert checksum(torch.empty(0, dtype=torch.int64)) == 0


@pytest.mark.parametrize(
    "words",
    [torch.zeros(32), torch.zeros(33, dtype=torch.int64), torch.zeros(64, dtype=torch.int64)[::2]],
)
def test_what_cannot_be_read(words: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="must be int64, a multiple of 256 bytes"):
        checksum(words)
