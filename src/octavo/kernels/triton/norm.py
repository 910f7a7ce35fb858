"""Root-mean-square normalisation (Zhang and Sennrich, 2019), one pass over each row."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from octavo.kernels.triton.launch import ceil_div, launch, next_power_of_2


class NormShape(NamedTuple):
    """How a norm of rows of some width is launched."""

    rows: int  #: of one program
    block: int  #: columns held at once: the row's width rounded up, or less where the row is gone over in a loop
    num_warps: int


WIDEST = 32_768
"""Columns of a row that one program holds in registers; wider rows are read twice, the second time from the cache."""

TILE = 1024
"""Elements of narrow rows that one program takes together."""


def norm_shape(width: int) -> NormShape:
    """The launch of rows of ``width``: eight to thirty-two elements a thread, at least one 16-byte load of each."""
    block = next_power_of_2(width)
    if block > WIDEST:
        return NormShape(1, 8192, 16)
    rows = max(1, TILE // block)
    return NormShape(rows, block, min(32, max(4, rows * block // 512)))


@triton.jit(do_not_specialize=["num_rows"])
def _rms_norm_kernel(
    x, residual, weight, out, x_stride, residual_stride, out_stride, num_rows, width, eps, offset,
    HAS_RESIDUAL: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    columns = tl.arange(0, BLOCK)[None, :]
    inside = (rows < num_rows) & (columns < width)
    values = tl.load(x + rows * x_stride + columns, mask=inside, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        place = residual + rows * residual_stride + columns
        added = values + tl.load(place, mask=inside, other=0.0).to(tl.float32)
        rounded = added.to(residual.dtype.element_ty)
        tl.store(place, rounded, mask=inside)
        values = rounded.to(tl.float32)
    scale = tl.rsqrt(tl.sum(values * values, 1) / width + eps)
    weights = tl.load(weight + columns, mask=columns < width, other=0.0).to(tl.float32)
    normed = values * scale[:, None] * (weights + offset)
    tl.store(out + rows * out_stride + columns, normed.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _wide_rms_norm_kernel(
    x, residual, weight, out, x_stride, residual_stride, out_stride, width, eps, offset,
    HAS_RESIDUAL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    x += row * x_stride
    out += row * out_stride
    if HAS_RESIDUAL:
        residual += row * residual_stride
    squares = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, width, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < width
        values = tl.load(x + columns, mask=inside, other=0.0).to(tl.float32)
        if HAS_RESIDUAL:
            added = values + tl.load(residual + columns, mask=inside, other=0.0).to(tl.float32)
            rounded = added.to(residual.dtype.element_ty)
            tl.store(residual + columns, rounded, mask=inside)
            values = rounded.to(tl.float32)
        squares += values * values
    scale = tl.rsqrt(tl.sum(squares, 0) / width + eps)
    if HAS_RESIDUAL:
        tl.debug_barrier()  # what is read below was written above, maybe by another thread
        x = residual
    for start in range(0, width, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < width
        values = tl.load(x + columns, mask=inside, other=0.0).to(tl.float32)
        weights = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
        normed = values * scale * (weights + offset)
        tl.store(out + columns, normed.to(out.dtype.element_ty), mask=inside)


def _launch(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float, out: torch.Tensor, offset: float
) -> torch.Tensor:
    num_rows, width = x.shape
    if num_rows == 0:
        return out
    shape = norm_shape(width)
    strides = x.stride(0), 0 if residual is None else residual.stride(0), out.stride(0)
    if shape.block < width:
        launch(
            _wide_rms_norm_kernel, (num_rows,), x, residual, weight, out, *strides, width, eps, offset,
            HAS_RESIDUAL=residual is not None, BLOCK=shape.block, num_warps=shape.num_warps,
        )  # fmt: skip
    else:
        launch(
            _rms_norm_kernel, (ceil_div(num_rows, shape.rows),),
            x, residual, weight, out, *strides, num_rows, width, eps, offset,
            HAS_RESIDUAL=residual is not None, ROWS=shape.rows, BLOCK=shape.block, num_warps=shape.num_warps,
        )  # fmt: skip
    return out


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor, offset: float = 0.0) -> torch.Tensor:
    """``out = x / rms(x) * (offset + weight)``; x, out [T, H] with contiguous rows, weight [H].

    Floor: 4 H bytes a row of 16-bit numbers (one read, one write); eager PyTorch moves about 36 H.
    """
    return _launch(x, None, weight, eps, out, offset)


def add_rms_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    out: torch.Tensor,
    offset: float = 0.0,
) -> torch.Tensor:
    """``residual += x`` in place, rounded to its dtype; ``out`` is the norm of that. All [T, H] with contiguous rows,
    weight [H].

    Floor: 8 H bytes a row of 16-bit numbers (two reads, two writes); eager PyTorch moves about 42 H.
    """
    return _launch(x, residual, weight, eps, out, offset)
