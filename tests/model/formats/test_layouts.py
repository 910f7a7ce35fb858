"""Every layout stands for what its numbers say, matrix by matrix and in a model's logits."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from quantized_folders import (
    AWQ,
    awq,
    compressed,
    compressed_int,
    compressed_packed,
    gptq,
    gptq_settings,
    quantized_folder,
)
from safetensors.torch import load_file
from torch.nn import functional as F

from octavo.model.formats import open_weights
from octavo.model.quantized import QuantizedWeight

pytestmark = pytest.mark.usefixtures("one_thread")


CASES = {
    "W8A8": (compressed_int, compressed(8, None, True, "int-quantized"), (8, None, True)),
    "W8A8 asymmetric": (compressed_int, compressed(8, None, False, "int-quantized"), (8, None, False)),
    "W4A16 groups": (compressed_packed, compressed(4, 32, True), (4, 32, True)),
    "W4A16 groups asymmetric": (compressed_packed, compressed(4, 64, False), (4, 64, False)),
    "W4A16 channels": (compressed_packed, compressed(4, None, True), (4, None, True)),
    "W8A16 groups": (compressed_packed, compressed(8, 32, True), (8, 32, True)),
    "W8A16 channels asymmetric": (compressed_packed, compressed(8, None, False), (8, None, False)),
    "GPTQ 4": (gptq, gptq_settings(4, 32, True), (4, 32, True)),
    "GPTQ 4 asymmetric": (gptq, gptq_settings(4, 32, False), (4, 32, False)),
    "GPTQ 8 channels": (gptq, gptq_settings(8, None, True), (8, None, True)),
    "GPTQ 8 asymmetric": (gptq, gptq_settings(8, 32, False), (8, 32, False)),
    "GPTQ version 2": (
        partial(gptq, version=2),
        gptq_settings(4, 64, False, checkpoint_format="gptq_v2", desc_act=True),
        (4, 64, False),
    ),
    "AWQ": (awq, AWQ, (4, 32, False)),
}


@pytest.mark.parametrize("case", CASES)
def test_a_quantised_folder_is_the_model_its_numbers_stand_for(
    source: Path, tmp_path: Path, logits: Callable[..., torch.Tensor], case: str
) -> None:
    spell, settings, (bits, size, symmetric) = CASES[case]
    quantized, full = quantized_folder(source, tmp_path, spell, settings, bits=bits, size=size, symmetric=symmetric)
    weights = open_weights(quantized)
    for name, tensor in load_file(full / "model.safetensors").items():
        if "_proj" not in name:
            continue
        found = weights.weight(name.removesuffix(".weight"), tuple(tensor.shape))
        assert isinstance(found, QuantizedWeight)
        assert (found.bits, found.group_size) == (bits, size or tensor.shape[1])
        assert (found.mins is None) == (symmetric and bits == 8)
        torch.testing.assert_close(found.dequantized(), tensor, rtol=0, atol=1e-6)
    got, want = logits(quantized), logits(full)
    assert F.cosine_similarity(got, want).min() > 0.997  # activations are rounded to 8 bits
    assert (got.argmax(1) == want.argmax(1)).float().mean() > 0.9
