"""Rotation, norms and the KV write on the GPU, at real sizes."""

from __future__ import annotations

import pytest
import torch
from exactness import close
from rotary_case import Case, turned

from octavo.kernels import QuantizedKv, reference

triton = pytest.importorskip("octavo.kernels.triton", exc_type=ImportError)

HALVES = (torch.bfloat16, torch.float16)
MODELS = [(16, 8, 128, 128, True), (32, 8, 64, 64, False), (14, 2, 64, 64, False), (8, 4, 80, 32, True)]


def case(model: tuple[int, int, int, int, bool], rows: int, dtype: torch.dtype, kv_dtype: torch.dtype) -> Case:
    num_heads, num_kv_heads, dim, rotated, has_norm = model
    return Case(
        rows, num_heads, num_kv_heads, dim, rotated, dtype, kv_dtype, has_norm, has_norm, device="cuda"
    )  # fmt: skip


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("rows", [1, 300, 5000])
@pytest.mark.parametrize("model", MODELS)
def test_norm_rotation_and_write(model: tuple[int, int, int, int, bool], rows: int, dtype: torch.dtype) -> None:
    made = case(model, rows, dtype, dtype)
    heads, cache, kv = made.run(keep_keys=True)
    q, k, v = made.parts()
    last = made.num_heads + made.num_kv_heads
    assert close(heads[:, : made.num_heads], q)
    assert close(heads[:, made.num_heads : last], k)
    blocks, offsets = made.slots // made.block_size, made.slots % made.block_size
    assert torch.equal(kv[blocks, 1, 0, :, offsets], heads[:, made.num_heads : last])
    assert torch.equal(kv[blocks, 1, 1, :, offsets], v.to(dtype))
    untouched, old = made.memory()
    old[blocks, 1, :, :, offsets] = kv[blocks, 1, :, :, offsets]
    assert torch.equal(cache, untouched)


@pytest.mark.parametrize("model", MODELS)
def test_int8(model: tuple[int, int, int, int, bool]) -> None:
    """Bit for bit what quantising the kernel's own float32 keys gives."""
    made = case(model, 100, torch.bfloat16, torch.float32)
    _, _, exact = made.run(keep_keys=False)
    made.kv_dtype = torch.int8
    _, cache, kv = made.run(keep_keys=False)
    assert isinstance(kv, QuantizedKv)
    blocks, offsets = made.slots // made.block_size, made.slots % made.block_size
    untouched, old = made.memory()
    reference.write_kv(*(exact[blocks, 1, which, :, offsets] for which in (0, 1)), old, 1, made.slots)
    scale = old.scales[blocks, 1, :, :, offsets][..., None]
    held, right = (each.values[blocks, 1, :, :, offsets] * scale for each in (kv, old))
    # the two float32 kernels may be compiled to sums that differ in their last bit: a step of int8 where that decides
    assert ((held - right).abs() <= scale * 1.01).all()
    assert (held != right).float().mean() < 1e-3
    old.values[blocks, 1, :, :, offsets] = kv.values[blocks, 1, :, :, offsets]
    old.scales[blocks, 1, :, :, offsets] = kv.scales[blocks, 1, :, :, offsets]
    assert torch.equal(cache, untouched)


def test_a_row_does_not_depend_on_the_rows_beside_it() -> None:
    made = case(MODELS[0], 4097, torch.bfloat16, torch.bfloat16)
    together, _, _ = made.run(keep_keys=True)
    qkv = made.qkv
    for row in (0, 4096):
        _, kv = made.memory()
        alone = qkv[row : row + 1].clone()
        triton.rotate_and_write(
            alone, made.q_norm, made.k_norm, 1e-5, made.cos_sin, made.positions[row : row + 1], kv, 1,
            made.slots[row : row + 1], made.num_heads, made.num_kv_heads, True,
        )  # fmt: skip
        assert torch.equal(alone.view(-1, made.dim), together[row])


@pytest.mark.parametrize("dtype", HALVES)
def test_rotary_embedding(dtype: torch.dtype) -> None:
    memory = torch.randn(700, 12, 128, device="cuda").to(dtype)
    before, positions = memory.double(), torch.randint(0, 40, (700,), device="cuda")
    angles = torch.rand(40, 64, device="cuda") * 6
    cos_sin = torch.cat((angles.cos(), angles.sin()), 1)
    triton.rotary_embedding(memory[:, 1:8], memory[:, 8:11], positions, cos_sin)
    assert close(memory[:, 1:11], turned(before[:, 1:11], positions, cos_sin))
    assert torch.equal(memory[:, [0, 11]], before[:, [0, 11]].to(dtype))


@pytest.mark.parametrize("kv_dtype", [*HALVES, torch.int8])
def test_write_kv(kv_dtype: torch.dtype) -> None:
    made = case(MODELS[0], 300, torch.bfloat16, kv_dtype)
    _, k, v = made.qkv.view(300, -1, 128).split((16, 8, 8), 1)
    (cache, kv), (right, reference_kv) = made.memory(), made.memory()
    triton.write_kv(k, v, kv, 2, made.slots)
    reference.write_kv(k, v, reference_kv, 2, made.slots)
    assert torch.equal(cache, right)
