"""Products with weights in panels, against float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_case import INTERPRETED

from octavo.kernels.cpu import PanelLinear
from octavo.kernels.cpu import linear as module

HALF_UNIT = 2.0**-8


def made(columns: int, inputs: int, bias: bool, seed: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(columns, inputs, generator=generator).bfloat16()
    return weight, torch.randn(columns, generator=generator).bfloat16() if bias else None


def exact(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: str | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The result in float64, and how far float32's sums may be from it."""
    result = x.double() @ weight.double().T + (0 if bias is None else bias.double())
    room = 1e-5 * (x.double().abs() @ weight.double().abs().T + 1)
    if activation is None:
        return result, room
    gate, up = result.chunk(2, dim=1)
    room_gate, room_up = room.chunk(2, dim=1)
    gate_of = F.silu if activation == "silu_and_mul" else lambda z: F.gelu(z, approximate="tanh")
    return gate_of(gate) * up, 1.2 * (room_gate * up.abs() + room_up * gate.abs()) + 1e-6


@settings(max_examples=8 if INTERPRETED else 60, deadline=None)
@given(
    rows=st.integers(1, 40 if INTERPRETED else 150),
    columns=st.integers(1, 9),
    inputs=st.integers(1, 40),
    bias=st.booleans(),
    activation=st.sampled_from([None, "silu_and_mul", "gelu_and_mul"]),
    strided=st.booleans(),
    seed=st.integers(0, 99),
)
def test_products(
    rows: int, columns: int, inputs: int, bias: bool, activation: str | None, strided: bool, seed: int
) -> None:
    weight, added = made(32 * columns, 32 * inputs, bias, seed)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 32 * inputs + 32 * strided, generator=generator).bfloat16()[:, : 32 * inputs]
    linear = PanelLinear(weight, added, activation)
    # what lies around the result is left as it is
    room = torch.full((rows + 2, linear.outputs + 16), math.nan, dtype=torch.bfloat16)
    out = room[1:-1, : linear.outputs]
    assert linear(x, out) is out
    expected, lost = exact(x, weight, added, activation)
    assert bool(((out.double() - expected).abs() <= 1.01 * HALF_UNIT * expected.abs() + lost).all())
    assert bool(room[0].isnan().all() and room[-1].isnan().all() and room[:, linear.outputs :].isnan().all())
    assert torch.equal(linear(x), out)
    wide = linear(x, torch.full((*out.shape,), math.nan))
    torch.testing.assert_close(wide.bfloat16(), out, rtol=0, atol=1e-37)  # numbers that are not normal may be zero
    assert bool(((wide.double() - expected).abs() <= lost + 1e-4 * expected.abs()).all())


@pytest.mark.skipif(INTERPRETED, reason="too many rows for Python")
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_chunks_runs_and_blocks_cover_every_element_once(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_BYTES", 64 * 2 * 416)
    monkeypatch.setattr(module, "RUN_BYTES", 2 * 13 * 2048)
    weight, _ = made(32 * 17, 416, False, 1)
    x = torch.randn(333, 416, generator=torch.Generator().manual_seed(2)).bfloat16()
    linear = PanelLinear(weight)
    monkeypatch.setattr(module, "num_threads", lambda: threads)
    expected, lost = exact(x, weight, None, None)
    assert bool(((linear(x).double() - expected).abs() <= 1.01 * HALF_UNIT * expected.abs() + lost).all())


@pytest.mark.skipif(INTERPRETED, reason="too many rows for Python")
def test_a_row_does_not_depend_on_the_rows_beside_it() -> None:
    weight, bias = made(96, 576, True, 3)
    linear = PanelLinear(weight, bias)
    x = torch.randn(77, 576, generator=torch.Generator().manual_seed(4)).bfloat16()
    few, many = linear(x[:32]), linear(x)
    for row in range(32):
        assert torch.equal(linear(x[row : row + 1])[0], few[row])
    assert torch.equal(linear(x[5:]), many[5:])


def test_numbers_that_are_none_stay_so_and_keep_to_their_row() -> None:
    weight, _ = made(64, 64, False, 5)
    x = torch.ones(3, 64, dtype=torch.bfloat16)
    x[1, 7] = math.nan
    result = PanelLinear(weight)(x)
    assert result[1].isnan().all()
    assert not result[0::2].isnan().any()


def test_other_products_beside_it_are_not_disturbed() -> None:
    """The matrix unit's shape belongs to a thread, and other libraries use it too."""
    weight, _ = made(160, 96, False, 6)
    linear = PanelLinear(weight)
    for rows in (1, 7, 16, 33, 5):
        x = torch.randn(rows, 96, generator=torch.Generator().manual_seed(rows)).bfloat16()
        before = F.linear(x, weight)
        ours = linear(x)
        assert torch.equal(F.linear(x, weight), before)
        assert torch.equal(linear(x), ours)


def test_no_rows() -> None:
    assert PanelLinear(made(32, 32, False, 7)[0])(torch.empty(0, 32, dtype=torch.bfloat16)).shape == (0, 32)


def test_what_it_does_not_serve_is_refused() -> None:
    for shape, dtype in (((32, 40), torch.bfloat16), ((40, 32), torch.bfloat16), ((32, 32), torch.float32)):
        weight = torch.ones(shape, dtype=dtype)
        assert not PanelLinear.serves(weight)
        with pytest.raises(ValueError, match="panels"):
            PanelLinear(weight)
    linear = PanelLinear(torch.ones(64, 32, dtype=torch.bfloat16))
    x, out = torch.ones(3, 32, dtype=torch.bfloat16), torch.empty(3, 64, dtype=torch.bfloat16)
    for bad_x, bad_out in (
        (x.float(), out),
        (x[:, :16], out),
        (x[:2], out),
        (x, out.half()),
        (x, torch.empty(3, 32, dtype=torch.bfloat16)),
    ):
        with pytest.raises(ValueError, match="must be"):
            linear(bad_x, bad_out)


def test_rows_of_the_weight_can_be_looked_up() -> None:
    weight, _ = made(96, 64, False, 3)
    indexes = torch.tensor([0, 95, 31, 32, 15, 16, 95])
    out = torch.zeros(7, 64, dtype=torch.bfloat16)
    assert PanelLinear(weight).look_up(indexes, out) is out
    assert torch.equal(out, weight[indexes])
    assert PanelLinear(weight).look_up(indexes[:0], out[:0]).shape == (0, 64)
    with pytest.raises(IndexError):
        PanelLinear(weight).look_up(torch.tensor([96]), out[:1])
    with pytest.raises(ValueError, match="gated"):
        PanelLinear(weight, activation="silu_and_mul").look_up(indexes, out)
