"""The rotation and what is fused with it, as compiled."""

from __future__ import annotations

import pytest
import torch
from compiling import ARCHITECTURES, compiled

from octavo.kernels import KvLayout, triton

MODELS = {"qwen3-0.6b": (16, 8, 128, True), "llama-1b": (32, 8, 64, False), "qwen2-0.5b": (14, 2, 64, False)}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("model", MODELS)
def test_norm_rotation_and_write(architecture: int, model: str) -> None:
    rows, (num_heads, num_kv_heads, dim, has_norm) = 4, MODELS[model]
    qkv = torch.empty(rows, (num_heads + 2 * num_kv_heads) * dim, dtype=torch.bfloat16)
    norm = torch.empty(dim, dtype=torch.bfloat16) if has_norm else None
    layout = KvLayout(2, num_kv_heads, dim, 16, torch.bfloat16)
    kv, cos_sin, places = layout.view(layout.allocate(4)), torch.empty(64, dim), torch.zeros(rows, dtype=torch.int64)
    (launch,) = compiled(
        architecture,
        lambda: triton.rotate_and_write(
            qkv, norm, norm, 1e-5, cos_sin, places, kv, 1, places, num_heads, num_kv_heads
        ),
    )  # fmt: skip
    # both halves of a row: two 16-byte loads, and two stores to each of where rows may go
    assert launch.shared == 0, "a thread keeps the numbers it has loaded"
    assert launch.count("LDG", ".128") >= 2 + 4 * has_norm, launch.instructions
    assert launch.count("STG") == launch.count("STG", ".128") == 4, launch.instructions


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_int8_is_rounded_in_two_steps(architecture: int) -> None:
    """Products are not fused with the sum that rounds them."""
    qkv, layout = torch.empty(8, 16 * 64, dtype=torch.bfloat16), KvLayout(2, 4, 64, 16, torch.int8)
    kv, cos_sin, places = layout.view(layout.allocate(4)), torch.empty(64, 64), torch.zeros(8, dtype=torch.int64)
    heads = qkv.view(8, 16, 64)
    launches = compiled(
        architecture,
        lambda: (
            triton.rotate_and_write(qkv, None, None, 1e-5, cos_sin, places, kv, 1, places, 8, 4),
            triton.write_kv(heads[:, 8:12], heads[:, 12:], kv, 1, places),
        ),
    )
    assert len(launches) == 2
    for launch in launches:
        assert "fma.rn.f32" not in launch.compiled.asm["ptx"]
