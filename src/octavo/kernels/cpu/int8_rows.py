"""Rows of activations as bytes: each with a scale of its own, found while it is computed with.

The largest magnitude of a row becomes 127. So a row's bytes depend on that row alone, and so does what is computed with
them.
"""

from __future__ import annotations

from octavo.kernels.cpu.elementwise import quantize_row
from octavo.kernels.cpu.jit import device, kernel
from octavo.kernels.cpu.launch import FIRST_ARGUMENT, NUM_TASKS, TASK, packer
from octavo.kernels.cpu.words import fetch_add, load_i64, store_f32


@device
def quantize_span(
    dtype: int, x: int, x_stride: int, target: int, padded: int, scales: int, first: int, last: int, width: int
) -> None:
    """Rows ``first`` to ``last`` of x, ``x_stride`` bytes apart, as rows of ``padded`` bytes, and a float each at
    ``scales``. What follows a row's own bytes is unspecified: weights are zeros there."""
    for row in range(first, last):
        store_f32(scales + 4 * row, quantize_row(dtype, x + row * x_stride, target + row * padded, width))


# ---------------------------------------------------------------- whole batches

(X, X_STRIDE, DTYPE, COUNT, WIDTH, PADDED, SHARED, SHARED_BYTES, PER_TASK) = range(
    FIRST_ARGUMENT, FIRST_ARGUMENT + 8 * 9, 8
)
pack_quantize = packer("9q")


@device
def quantize_tasks(p: int, counter: int, shared: int) -> int:
    """Take tasks, runs of rows, until none is left; returns how many. At ``shared`` come to lie first the bytes of all
    rows, then their scales: what :func:`quantized_bytes` is the size of."""
    count, width, padded = load_i64(p + COUNT), load_i64(p + WIDTH), load_i64(p + PADDED)
    tasks, scales, per_task = load_i64(p + NUM_TASKS), shared + count * padded, load_i64(p + PER_TASK)
    done = 0
    while True:
        task = fetch_add(counter, 1)
        if task >= tasks:
            break
        first, last = task * per_task, min(count, (task + 1) * per_task)
        quantize_span(
            load_i64(p + DTYPE), load_i64(p + X), load_i64(p + X_STRIDE), shared, padded, scales, first, last, width
        )
        done += 1
    return done


@kernel
def quantize_rows(p: int) -> None:
    """The rows of one batch."""
    quantize_tasks(p, p + TASK, load_i64(p + SHARED))


def quantized_bytes(count: int, padded: int) -> int:
    """What ``count`` rows of ``padded`` bytes and their scales take."""
    return count * (padded + 4)
