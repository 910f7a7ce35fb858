"""Weights in few bits: what they stand for, how near they come, and what is refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.model.quantized import QuantizedWeight, quantize


@st.composite
def weights(draw: st.DrawFn) -> tuple[torch.Tensor, int, int]:
    """A matrix, bits, and a group size that fits."""
    rows, groups, size = draw(st.integers(1, 9)), draw(st.integers(1, 4)), 2 * draw(st.integers(1, 17))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    weight = torch.randn(rows, groups * size, generator=generator) * 10.0 ** draw(st.integers(-20, 20))
    weight = weight + draw(st.sampled_from([0.0, 1.0, -3.0])) * weight.abs().amax()
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16]))
    return weight.to(dtype), draw(st.sampled_from([4, 8])), size


@settings(deadline=None, max_examples=60)
@given(weights())
def test_every_value_is_the_nearest_its_scale_allows(case: tuple[torch.Tensor, int, int]) -> None:
    weight, bits, size = case
    made = quantize(weight, bits, size)
    assert made.shape == tuple(weight.shape)
    assert (made.group_size, made.bits) == (size, bits)
    exact = weight.double().unflatten(1, (-1, size))
    scales = made.scales.double().unsqueeze(2)
    mins = 0.0 if made.mins is None else made.mins.double().unsqueeze(2)
    levels = torch.arange(16).double() if bits == 4 else torch.arange(-127, 128).double()
    nearest = (
        (levels * scales.unsqueeze(3) - (mins.unsqueeze(3) if bits == 4 else 0) - exact.unsqueeze(3)).abs().amin(3)
    )
    held = made.integers().double().unflatten(1, (-1, size)) * scales - mins
    slack = exact.abs().amax() * 1e-6
    assert bool(((held - exact).abs() <= nearest + slack).all())
    assert torch.allclose(made.dequantized().double(), held.flatten(1), rtol=1e-6, atol=float(slack))


@settings(deadline=None, max_examples=40)
@given(weights())
def test_the_error_is_at_most_half_a_step_of_the_whole_range(case: tuple[torch.Tensor, int, int]) -> None:
    weight, bits, size = case
    groups = weight.double().unflatten(1, (-1, size))
    step = groups.abs().amax(2) / 127
    if bits == 4:
        step = (groups.amax(2).clamp(min=0) - groups.amin(2).clamp(max=0)) / 15
    error = (quantize(weight, bits, size).dequantized().double().unflatten(1, (-1, size)) - groups).square().sum(2)
    assert bool((error <= size * (0.5001 * step + 1e-6 * groups.abs().amax()) ** 2).all())


@settings(deadline=None, max_examples=30)
@given(weights(), st.integers(0, 99))
def test_stacking_and_taking_rows_apart_change_nothing(case: tuple[torch.Tensor, int, int], seed: int) -> None:
    weight, bits, size = case
    made = quantize(weight, bits, size)
    order = torch.randperm(weight.shape[0], generator=torch.Generator().manual_seed(seed))
    parts = [made.rows(order[i : i + 1]) for i in range(len(order))]
    again = QuantizedWeight.stack(parts)
    assert torch.equal(again.dequantized(), made.dequantized()[order])
    assert again.nbytes == made.nbytes == sum(part.nbytes for part in parts)


@settings(deadline=None, max_examples=30)
@given(weights())
def test_zero_points_of_four_bits_are_whole(case: tuple[torch.Tensor, int, int]) -> None:
    weight, _, size = case
    made = quantize(weight, 4, size)
    assert made.mins is not None
    zeros = torch.where(made.scales == 0, 0, made.mins / made.scales).round()
    assert bool(((zeros >= 0) & (zeros <= 15)).all())
    assert torch.equal(zeros * made.scales, made.mins)


def test_a_large_weight_is_made_in_parts_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(11, 32)
    whole = quantize(weight, 8)
    monkeypatch.setattr("octavo.model.quantized._AT_ONCE", 64)
    assert torch.equal(quantize(weight, 8).values, whole.values)


@pytest.mark.parametrize("bits", [4, 8])
def test_groups_whose_weights_are_all_alike_are_exact(bits: int) -> None:
    weight = torch.tensor([[0.0] * 4 + [2.5] * 4 + [-1.0] * 4])
    assert torch.allclose(quantize(weight, bits, 4).dequantized(), weight, rtol=1e-6)


def test_four_bits_keep_the_even_input_in_the_low_half() -> None:
    made = QuantizedWeight(torch.tensor([[0x21]], dtype=torch.uint8), torch.ones(1, 1), None, 4)
    assert made.dequantized().tolist() == [[1.0, 2.0]]


def test_one_without_mins_is_stacked_with_one_that_has_them() -> None:
    plain = QuantizedWeight(torch.ones(1, 2, dtype=torch.int8), torch.ones(1, 1), None, 8)
    moved = QuantizedWeight(torch.ones(1, 2, dtype=torch.int8), torch.ones(1, 1), torch.ones(1, 1), 8)
    assert QuantizedWeight.stack([plain, moved]).dequantized().tolist() == [[1.0, 1.0], [0.0, 0.0]]


@pytest.mark.parametrize(
    ("weight", "bits", "size"),
    [
        (torch.ones(4), 8, None),
        (torch.ones(2, 4, dtype=torch.int8), 8, None),
        (torch.ones(2, 4), 5, None),
        (torch.ones(2, 4), 8, 3),
        (torch.ones(2, 6), 4, 3),
        (torch.ones(2, 4), 8, 0),
        (torch.tensor([[1.0, float("inf")]]), 8, None),
        (torch.tensor([[1.0, float("nan")]]), 4, None),
    ],
)
def test_what_cannot_be_quantised_is_refused(weight: torch.Tensor, bits: int, size: int | None) -> None:
    with pytest.raises(ValueError, match=r"cannot|must be"):
        quantize(weight, bits, size)


@pytest.mark.parametrize(
    ("values", "scales", "mins", "bits"),
    [
        (torch.ones(2, 4), torch.ones(2, 1), None, 8),
        (torch.ones(2, 4, dtype=torch.int8), torch.ones(2, 1), None, 4),
        (torch.ones(2, 4, dtype=torch.int8), torch.ones(3, 1), None, 8),
        (torch.ones(2, 4, dtype=torch.int8), torch.ones(2, 3), None, 8),
        (torch.ones(2, 4, dtype=torch.int8), torch.ones(2, 1), torch.ones(2, 2), 8),
        (torch.ones(2, 3, dtype=torch.uint8), torch.ones(2, 6), None, 4),
        (torch.ones(2, 4, dtype=torch.int8), torch.ones(2, 1), None, 3),
    ],
)
def test_parts_that_do_not_fit_are_refused(
    values: torch.Tensor, scales: torch.Tensor, mins: torch.Tensor | None, bits: int
) -> None:
    with pytest.raises(ValueError, match=r"must be|cannot|one of each"):
        QuantizedWeight(values, scales, mins, bits)
    with pytest.raises(ValueError, match="one weight"):
        QuantizedWeight.stack([quantize(torch.ones(1, 4), 8, 4), quantize(torch.ones(1, 4), 8, 2)])
