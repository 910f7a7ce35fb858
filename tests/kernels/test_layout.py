"""Where keys and values lie in a page."""

from __future__ import annotations

import sys

import psutil  # type: ignore[import-untyped, unused-ignore]
import pytest
import torch

from octavo.kernels import KvLayout, QuantizedKv
from octavo.kernels.reference.cache import quantize_rows


def test_int8_takes_a_byte_an_item_and_a_float_for_each_token_and_head() -> None:
    plain = KvLayout(28, 8, 128, 16, torch.bfloat16)
    layout = KvLayout(28, 8, 128, 16, torch.int8)
    assert layout.page_bytes == 28 * 2 * 8 * 16 * (128 + 4)
    assert 1.9 < plain.page_bytes / layout.page_bytes < 2
    assert (plain.is_quantized, layout.is_quantized) == (False, True)


@pytest.mark.parametrize("shape", [(2, 3, 8, 4), (1, 1, 8, 1), (2, 1, 3, 5), (1, 2, 64, 16)])
def test_values_and_scales_fill_the_page_and_nothing_else(shape: tuple[int, int, int, int]) -> None:
    layout = KvLayout(*shape, torch.int8)
    cache = layout.allocate(3)
    kv = layout.view(cache)
    assert isinstance(kv, QuantizedKv)
    assert kv.shape == (3, shape[0], 2, shape[1], shape[3], shape[2])
    kv.values[1] = -1  # all bits set
    kv.scales.view(torch.int32)[1] = -1
    padding = layout.rows_bytes - shape[2] * shape[3]
    assert int((cache[1] == 255).sum()) == layout.page_bytes - padding * shape[0] * 2 * shape[1]
    assert not cache[0].any()
    assert not cache[2].any()


def test_rows_are_rounded_to_127_steps_of_their_largest() -> None:
    rows = torch.randn(50, 3, 32) * torch.rand(50, 3, 1) * 100
    rows[0] = 0
    rows[1] = 1e-35
    values, scales = quantize_rows(rows)
    assert (values[2:].abs().amax(-1) == 127).all()
    assert not values[:2].any()
    assert not scales[:2].any()
    assert ((values * scales[..., None] - rows).abs() <= 0.501 * scales[..., None] + 1e-30).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_row_that_is_not_finite_stays_so(bad: float) -> None:
    rows = torch.ones(2, 16)
    rows[1, 5] = bad
    values, scales = quantize_rows(rows)
    held = values * scales[:, None]
    assert torch.equal(held[0], rows[0])
    assert not held[1].isfinite().any()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems count memory otherwise")
def test_pages_that_nobody_wrote_take_no_memory() -> None:
    gibibyte = 2**30
    layout = KvLayout(2, 3, 8, 4, torch.bfloat16)
    before = psutil.Process().memory_info().rss
    cache = layout.allocate(gibibyte // layout.page_bytes)
    assert cache.numel() > gibibyte - layout.page_bytes
    assert psutil.Process().memory_info().rss - before < gibibyte // 8
