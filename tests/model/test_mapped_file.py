"""Tensors of a mapped file are what was saved, and are let go of."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil  # type: ignore[import-untyped, unused-ignore]
import pytest
import torch
from safetensors.torch import save_file

from octavo.model.mapped_file import MOST_MAPPED, MappedFile


def test_every_type_is_read_as_it_was_saved(tmp_path: Path) -> None:
    dtypes = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.int8)
    saved = {str(dtype): (torch.randn(3, 5) * 50).to(dtype) for dtype in (*dtypes, torch.uint8)}
    saved |= {"flags": torch.randn(7) > 0, "empty": torch.empty(0, 4), "scalar": torch.tensor(2.5)}
    saved["f8"] = torch.randn(9).to(torch.float8_e4m3fn)
    save_file(saved, tmp_path / "a.safetensors")
    file = MappedFile(tmp_path / "a.safetensors")
    for name, tensor in saved.items():
        read = file.tensor(name)
        assert read.dtype == tensor.dtype
        assert read.shape == tensor.shape
        assert torch.equal(read.view(-1).view(torch.uint8), tensor.view(-1).view(torch.uint8))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems count memory otherwise")
def test_what_was_read_is_let_go_of_and_still_there(tmp_path: Path) -> None:
    size = MOST_MAPPED // 2
    save_file({f"{i}": torch.full((size,), i, dtype=torch.uint8) for i in range(8)}, tmp_path / "a.safetensors")
    file, before, read = MappedFile(tmp_path / "a.safetensors"), psutil.Process().memory_info().rss, []
    for i in range(8):
        read.append(file.tensor(f"{i}"))
        assert bool((read[-1] == i).all())
        assert psutil.Process().memory_info().rss - before < 2 * MOST_MAPPED
    file.let_go()
    assert psutil.Process().memory_info().rss - before < MOST_MAPPED // 2
    assert bool((read[0] == 0).all())
    assert bool((read[3] == 3).all())
