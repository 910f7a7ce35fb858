"""Safetensors files written a tensor at a time."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from octavo.errors import WeightsError
from octavo.model.tensor_file import TensorFile

TENSORS = {
    "a": torch.randn(3, 4),
    "b": torch.arange(8, dtype=torch.int8).reshape(2, 4),
    "c.ü": torch.randn(2, 2).bfloat16(),
    "d": torch.tensor([2, 4]),
    "e": torch.randn(4, 6).t(),
    "empty": torch.empty(0, 4),
}


def test_the_library_reads_what_was_written(tmp_path: Path) -> None:
    with TensorFile(tmp_path / "model.safetensors", [*TENSORS, "never written"]) as file:
        for name, tensor in TENSORS.items():
            file.write(name, tensor)
    found = load_file(tmp_path / "model.safetensors")
    assert found.keys() == TENSORS.keys()
    assert all(
        found[name].dtype == tensor.dtype and torch.equal(found[name], tensor) for name, tensor in TENSORS.items()
    )
    with safe_open(tmp_path / "model.safetensors", "pt") as opened:
        assert opened.metadata() == {"format": "pt"}


def test_a_file_left_by_an_error_cannot_be_read(tmp_path: Path) -> None:
    with contextlib.suppress(ZeroDivisionError), TensorFile(tmp_path / "model.safetensors", ["a"]) as file:
        file.write("a", TENSORS["a"])
        raise ZeroDivisionError
    with pytest.raises(SafetensorError):
        load_file(tmp_path / "model.safetensors")


def test_numbers_that_could_not_be_read_in_place_are_refused(tmp_path: Path) -> None:
    with TensorFile(tmp_path / "model.safetensors", ["a", "b"]) as file:
        file.write("a", torch.zeros(3, dtype=torch.int8))
        with pytest.raises(WeightsError, match=r"b of torch\.float32"):
            file.write("b", torch.zeros(2))
