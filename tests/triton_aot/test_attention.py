"""Attention as compiled."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attention_case import FEATURES, launches
from compiling import ARCHITECTURES, Launch

from octavo.kernels.triton import decode, launch

REGISTERS = 65_536
SHARED = {80: 167_936, 89: 102_400, 90: 233_472}
"""Bytes of shared memory of a processor; each program there takes 1024 more than it asks for."""

INT8 = {"kv_dtype": torch.int8}


def matrix_instructions(each: Launch) -> int:
    return each.count("HGMMA" if each.architecture == 90 else "HMMA")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    ("dim", "more"),
    [(64, {}), (128, {}), (256, {}), (128, {**INT8, **FEATURES}), (128, {"dtype": torch.float32})],
    ids=["64", "128", "256", "int8", "float32"],
)
def test_decode(architecture: int, dim: int, more: dict[str, Any]) -> None:
    kernels = launches(architecture, dim, 1, **more)
    each = kernels["_decode_kernel"]
    # keys and values come 16 bytes at a time, straight to shared memory
    assert each.count("LDGSTS", ".128") >= 8
    quantized = more.get("kv_dtype") is torch.int8
    if more.get("dtype") is not torch.float32:
        assert each.count("HMMA") > 0
        wanted = launch.table_for(architecture, decode._RESIDENT)[quantized]
        threads = 32 * each.num_warps
        assert wanted * threads * (-(-each.registers // 8) * 8) <= REGISTERS
        assert wanted * (each.shared + 1024) <= SHARED[architecture]
    assert "_reduce_kernel" in kernels


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    ("dim", "more"),
    [
        (64, {}),
        (128, {}),
        (256, {}),
        (128, FEATURES),
        (256, FEATURES),
        (128, {**INT8, **FEATURES}),
        (256, {**INT8, **FEATURES}),
    ],
    ids=["64", "128", "256", "128-features", "256-features", "128-int8", "256-int8"],
)
def test_prefill(architecture: int, dim: int, more: dict[str, Any]) -> None:
    each = launches(architecture, dim, 512, **more)["_prefill_kernel"]
    assert matrix_instructions(each) > 0
    if "kv_dtype" not in more:
        assert each.count("LDGSTS", ".128") >= 16
    assert each.count("STG", ".128") > 0


@pytest.mark.parametrize(
    "more",
    [{"dtype": torch.float16, "dim": 80}, {"block_size": 256, "dim": 128}, {"group": 7, "dim": 96}],
    ids=["fp16-80", "block-256", "group-7"],
)
def test_other_shapes(more: dict[str, Any]) -> None:
    assert matrix_instructions(launches(90, new=512, **more)["_prefill_kernel"]) > 0
    assert launches(90, new=1, **more)["_decode_kernel"].count("LDGSTS", ".128") > 0


@pytest.mark.parametrize("dim", [64, 128, 256])
def test_prefill_in_float32(dim: int) -> None:
    launches(90, dim, 512, dtype=torch.float32)


@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize(
    ("dim", "more"),
    [(128, FEATURES), (256, {**INT8, **FEATURES}), (64, {"dtype": torch.float32})],
    ids=["128", "256-int8", "float32"],
)
def test_batch_invariant(architecture: int, dim: int, more: dict[str, Any]) -> None:
    kernels = launches(architecture, dim, 1, batch_invariant=True, **more)
    assert set(kernels) >= {"_invariant_kernel", "_join_kernel"}
    if more.get("dtype") is not torch.float32:
        assert kernels["_invariant_kernel"].count("HMMA") > 0
