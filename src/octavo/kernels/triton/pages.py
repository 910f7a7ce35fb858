"""Keys and values in their blocks, as the attention kernels read them."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_rows(rows, here, dims, HEAD_DIM: tl.constexpr, MASKED: tl.constexpr):
    """The rows [N, dims] of HEAD_DIM items that pointers ``rows`` [N] lead to, zeros beyond; with MASKED, only those
    that are ``here``."""
    items = rows[:, None] + dims[None, :]
    is_dim = (dims < HEAD_DIM)[None, :]
    if MASKED:
        if dims.shape[0] == HEAD_DIM:
            block = tl.load(items, mask=here[:, None], other=0)
        else:
            block = tl.load(items, mask=here[:, None] & is_dim, other=0)
    elif dims.shape[0] == HEAD_DIM:
        block = tl.load(items)
    else:
        block = tl.load(items, mask=is_dim, other=0)
    return block


@triton.jit
def load_tile(
    kv,
    scales,
    table,
    keys,
    here,
    dims,
    page,
    which,
    scale_page,
    scale_which,
    BLOCK_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    MASKED: tl.constexpr,
    QUANTIZED: tl.constexpr,
):
    """Keys [D, N] and values [N, D] at positions ``keys`` [N]; with MASKED, zeros where not ``here``, and what the
    table says of those positions is not read: they may be holes. Their scales are [N], or without QUANTIZED one that
    means nothing. ``kv`` and ``scales`` point at a head's keys in page 0."""
    if MASKED:
        blocks = tl.load(table + keys // BLOCK_SIZE, mask=here, other=0).to(tl.int64)
    else:
        blocks = tl.load(table + keys // BLOCK_SIZE).to(tl.int64)
    places = keys % BLOCK_SIZE
    rows = kv + blocks * page + places * HEAD_DIM
    k = load_rows(rows, here, dims, HEAD_DIM, MASKED).T
    v = load_rows(rows + which, here, dims, HEAD_DIM, MASKED)
    k_scales = tl.full((1,), 1.0, tl.float32)
    v_scales = k_scales
    if QUANTIZED:
        of_keys = scales + blocks * scale_page + places
        if MASKED:
            k_scales = tl.load(of_keys, mask=here, other=0)
            v_scales = tl.load(of_keys + scale_which, mask=here, other=0)
        else:
            k_scales = tl.load(of_keys)
            v_scales = tl.load(of_keys + scale_which)
    return k, v, k_scales, v_scales
