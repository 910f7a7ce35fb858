"""Copies of blocks as compiled."""

from __future__ import annotations

import pytest
import torch
from compiling import ARCHITECTURES, compiled

from octavo.kernels import triton


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_copies(architecture: int) -> None:
    cache, ids = torch.empty(4, 2**16, dtype=torch.uint8), torch.zeros(6, dtype=torch.int64)
    (launch,) = compiled(architecture, lambda: triton.copy_blocks(cache, ids, ids))
    assert launch.grid == (16,)
    assert launch.shared == 0, "a thread writes the bytes that it reads"
    assert launch.count("LDG", ".128") == launch.count("STG", ".128") == launch.count("STG") == 8
