"""Products with weights in groups, against float64 and, to the bit, against themselves in every form and batch."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from cpu_forms import outcomes
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_case import INTERPRETED

from octavo.kernels.cpu import GroupedPanelLinear, byte_linear
from octavo.kernels.cpu.jit import host_features
from octavo.kernels.quantized import QuantizedWeight

HALF_UNIT = {torch.bfloat16: 2.0**-8, torch.float32: 2.0**-23}

MINS = ("centred", "zero points", "any")
"""How 4 bits lie about zero; 8 bits always do without for the first two."""


def made(columns: int, groups: int, size: int, bits: int, mins: str, half: bool, seed: int) -> QuantizedWeight:
    generator = torch.Generator().manual_seed(seed)
    inputs = groups * size
    scales = torch.rand(columns, groups, generator=generator) / inputs
    if half:
        scales = scales.half().float()
    if bits == 8:
        values = torch.randint(-128, 128, (columns, inputs), generator=generator, dtype=torch.int8)
    else:
        values = torch.randint(0, 256, (columns, inputs // 2), generator=generator, dtype=torch.uint8)
    made_mins = None
    if mins == "any":
        made_mins = torch.randn(columns, groups, generator=generator).half().float() / inputs
    elif bits == 4:
        zeros = torch.randint(0, 16, scales.shape, generator=generator) if mins == "zero points" else 8
        made_mins = zeros * scales
    return QuantizedWeight(values, scales, made_mins, bits)


def exact(
    x: torch.Tensor, weight: QuantizedWeight, bias: torch.Tensor | None, activation: str | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The result in float64 of the rows as they are rounded to bytes, and how far float32 may be from it."""
    largest = x.float().abs().amax(1, keepdim=True)
    rows = (x.float() * (torch.tensor([[127.0]]) / largest)).round().double() * (largest / 127).double()
    full = weight.dequantized().double()
    result = rows @ full.T + (0 if bias is None else bias.double())
    # what is subtracted again may be greater than what is left
    reach = full.abs() + weight.scales.double().repeat_interleave(weight.group_size, 1) * 16
    room = 1e-6 * (rows.abs() @ reach.T + 1)
    if activation is None:
        return result, room
    gate, up = result.chunk(2, dim=1)
    room_gate, room_up = room.chunk(2, dim=1)
    gate_of = F.silu if activation == "silu_and_mul" else lambda z: F.gelu(z, approximate="tanh")
    return gate_of(gate) * up, 1.2 * (room_gate * up.abs() + room_up * gate.abs()) + 1e-5


@settings(max_examples=8 if INTERPRETED else 80, deadline=None)
@given(
    rows=st.integers(1, 12 if INTERPRETED else 100),
    columns=st.integers(1, 150),
    form=st.sampled_from([(32, 1), (32, 5), (32, 40), (64, 3), (64, 26), (96, 3), (128, 3), (256, 2), (576, 1)]),
    bits=st.sampled_from([4, 8]),
    mins=st.sampled_from(MINS),
    half=st.booleans(),
    bias=st.booleans(),
    activation=st.sampled_from([None, "silu_and_mul", "gelu_and_mul"]),
    dtypes=st.sampled_from([(torch.bfloat16,) * 2, (torch.float32,) * 2, (torch.bfloat16, torch.float32)]),
    strided=st.booleans(),
    seed=st.integers(0, 99),
)
def test_products(
    rows: int,
    columns: int,
    form: tuple[int, int],
    bits: int,
    mins: str,
    half: bool,
    bias: bool,
    activation: str | None,
    dtypes: tuple[torch.dtype, torch.dtype],
    strided: bool,
    seed: int,
) -> None:
    columns *= 1 if activation is None else 2
    size, groups = form
    inputs = size * groups
    weight, generator = made(columns, groups, size, bits, mins, half, seed), torch.Generator().manual_seed(seed)
    added = torch.randn(columns, generator=generator).to(dtypes[0]) if bias else None
    x = torch.randn(rows, inputs + 32 * strided, generator=generator).to(dtypes[0])[:, :inputs]
    product = GroupedPanelLinear(weight, added, activation)
    # what lies around the result is left as it is
    room = torch.full((rows + 2, product.outputs + 16), math.nan, dtype=dtypes[1])
    out = room[1:-1, : product.outputs]
    assert product(x, out) is out
    expected, lost = exact(x, weight, added, activation)
    assert bool(((out.double() - expected).abs() <= 1.01 * HALF_UNIT[dtypes[1]] * expected.abs() + lost).all())
    assert bool(room[0].isnan().all() and room[-1].isnan().all() and room[:, product.outputs :].isnan().all())
    if dtypes[0] == dtypes[1]:
        assert torch.equal(product(x), out)


@pytest.mark.skipif(INTERPRETED, reason="too many rows for Python")
@pytest.mark.parametrize("threads", [1, 3])
def test_chunks_runs_blocks_and_shared_rows_change_no_bit(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(2)
    weights = [made(32 * 9, 26, 32, 4, "any", True, 1), made(32 * 9, 9, 96, 8, "centred", False, 1)]
    for weight in weights:
        x = torch.randn(165, weight.shape[1], generator=generator).bfloat16()
        expected = GroupedPanelLinear(weight)(x)
        with monkeypatch.context() as changed:
            changed.setattr(byte_linear, "CHUNK_BYTES", 64 * 832)
            changed.setattr(byte_linear, "RUN_BYTES", 2 * 32 * 832)
            changed.setattr(byte_linear, "num_threads", lambda: threads)
            product = GroupedPanelLinear(weight)
            assert torch.equal(product(x), expected)
            changed.setattr(byte_linear, "HERE_ITEMS", 2**30)
            assert torch.equal(product(x), expected)


@pytest.mark.skipif(INTERPRETED, reason="too many rows for Python")
@settings(max_examples=30, deadline=None)
@given(
    mins=st.sampled_from(MINS),
    size=st.sampled_from([32, 64]),
    first=st.integers(0, 76),
    last=st.integers(1, 77),
    scale=st.sampled_from([1.0, 1e-6, 1e6]),
)
def test_a_row_has_the_same_bits_beside_any_others(mins: str, size: int, first: int, last: int, scale: float) -> None:
    """However many they are: few rows are computed in another way than many."""
    generator = torch.Generator().manual_seed(4)
    product = GroupedPanelLinear(made(96, 576 // size, size, 4, mins, False, 3))
    x = torch.randn(77, 576, generator=generator).bfloat16()
    whole = product(x)
    last = max(last, first + 1)
    assert torch.equal(product(x[first:last]), whole[first:last])
    assert torch.equal(product(x[first : first + 1]), whole[first : first + 1])
    others = x * scale
    others[first] = x[first]
    assert torch.equal(product(others)[first], whole[first])


def test_rows_of_zeros_and_of_what_is_no_number_keep_to_themselves() -> None:
    x = torch.ones(5, 64, dtype=torch.bfloat16)
    x[1, 7], x[2], x[3, 3] = math.nan, 0.0, math.inf
    bias = torch.ones(32)
    result = GroupedPanelLinear(made(32, 2, 32, 4, "any", True, 5), bias)(x)
    assert result[1].isnan().all()
    assert (result[2] == 1).all()
    assert not result[3].isfinite().any()
    assert torch.equal(result[0], result[4])
    assert result[0].isfinite().all()


def test_scales_that_are_float16_are_kept_so() -> None:
    narrow, wide = (GroupedPanelLinear(made(64, 4, 32, 4, "centred", half, 1)) for half in (True, False))
    assert narrow.nbytes == 64 * 4 * (16 + 2)
    assert wide.nbytes == 64 * 4 * (16 + 4)


@settings(max_examples=8 if INTERPRETED else 40, deadline=None)
@given(
    columns=st.integers(1, 70),
    size=st.sampled_from([32, 96]),
    bits=st.sampled_from([4, 8]),
    mins=st.sampled_from(MINS),
    half=st.booleans(),
    seed=st.integers(0, 9),
)
def test_its_rows_are_the_weights(columns: int, size: int, bits: int, mins: str, half: bool, seed: int) -> None:
    weight = made(columns, 3, size, bits, mins, half, seed)
    ids = torch.randint(0, columns, (5,), generator=torch.Generator().manual_seed(seed))
    product, expected = GroupedPanelLinear(weight), weight.rows(ids).dequantized()
    for dtype in (torch.float32, torch.bfloat16):
        out = torch.zeros(len(ids), weight.shape[1], dtype=dtype)
        assert product.look_up(ids, out) is out
        # where least values are held less the middle of the range, they are rounded once more
        exact = mins == "centred" or (bits == 8 and mins != "any")
        torch.testing.assert_close(out, expected.to(dtype), rtol=0 if exact else 1e-2, atol=0 if exact else 1e-7)
    with pytest.raises(IndexError, match=f"the table has {columns}"):
        product.look_up(torch.tensor([columns]), torch.zeros(1, weight.shape[1]))


def test_no_rows() -> None:
    product = GroupedPanelLinear(made(32, 2, 32, 4, "any", True, 7))
    assert product(torch.empty(0, 64, dtype=torch.bfloat16)).shape == (0, 32)


def test_what_it_does_not_serve_is_refused() -> None:
    odd = made(4, 2, 48, 4, "centred", True, 1)
    assert not GroupedPanelLinear.serves(odd)
    with pytest.raises(ValueError, match="multiple of 32"):
        GroupedPanelLinear(odd)
    with pytest.raises(ValueError, match="halves"):
        GroupedPanelLinear(made(3, 2, 32, 4, "centred", True, 1), None, "silu_and_mul")
    with pytest.raises(ValueError, match="no table"):
        GroupedPanelLinear(made(4, 2, 32, 4, "centred", True, 1), None, "silu_and_mul").look_up(
            torch.tensor([0]), torch.empty(1, 64)
        )
    product = GroupedPanelLinear(made(4, 2, 32, 4, "centred", True, 1))
    x, out = torch.ones(3, 64), torch.empty(3, 4)
    for bad_x, bad_out in ((x.long(), out), (x[:, :32], out), (x[:2], out), (x, out.double()), (x, out[:, :2])):
        with pytest.raises(ValueError, match="must be"):
            product(bad_x, bad_out)


BITS = """
import hashlib, torch
from octavo.kernels.cpu import GroupedPanelLinear, dots, grouped_panels
from octavo.kernels.quantized import QuantizedWeight
digest = hashlib.sha256()
for rows, columns, groups, size in ((1, 70, 3, 32), (7, 64, 2, 64), (19, 96, 3, 96)):
    generator = torch.Generator().manual_seed(rows)
    values = torch.randint(-128, 128, (columns, groups * size), generator=generator, dtype=torch.int8)
    scales, mins = torch.rand(2, columns, groups, generator=generator)
    x = torch.randn(rows, groups * size, generator=generator)
    for weight in (
        QuantizedWeight(values, scales.half().float(), None, 8),
        QuantizedWeight(values[:, ::2].contiguous().view(torch.uint8), scales, mins, 4),
    ):
        digest.update(GroupedPanelLinear(weight)(x).numpy().tobytes())
print(grouped_panels.INTEGER_TILES, dots.WIDE_DOTS, dots.NARROW_DOTS, digest.hexdigest())
"""


@pytest.mark.skipif(INTERPRETED or "avx512vnni" not in host_features(), reason="this CPU has one form only")
def test_every_form_gives_the_same_bits() -> None:
    assert len(set(outcomes(BITS))) == 1
