"""Log-probabilities under the model's own distribution."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from octavo.kernels.reference import sampling as reference
from octavo.kernels.triton.cutoffs import (
    BLOCK,
    CAPACITY,
    LADDER,
    LAST,
    LEAST_KEY,
    NUM_WARPS,
    copy_above,
    cut,
    largest,
    load_block,
    survey,
)
from octavo.kernels.triton.order import order_key, order_value

MOST = 1024
"""Alternatives that a program sorts in registers."""


@triton.jit
def _gather_kernel(logits, row_stride, tokens, out, vocab_size, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    logits += row * row_stride
    token = tl.load(tokens + row)
    top = largest(logits, vocab_size, BLOCK)
    top = tl.where(top == -float("inf"), 0.0, top)
    mass = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, vocab_size, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        mass += tl.exp(tl.load(logits + ids, mask=ids < vocab_size, other=-float("inf")).to(tl.float32) - top)
    is_token = (token >= 0) & (token < vocab_size)
    value = tl.load(logits + tl.where(is_token, token, 0)).to(tl.float32) - top - tl.log(tl.sum(mass, 0))
    tl.store(out + row, tl.where(is_token, value, float("nan")))


def log_softmax_gather(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Log-probability of ``tokens`` int64 [B] under ``logits`` floating [B, V] (rows contiguous): float32 [B]; NaN
    for a token that is none.

    Floor: the logits' bytes, read once (the second reading comes from the cache).
    """
    out = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
    if len(logits):
        _gather_kernel[(len(logits),)](
            logits, logits.stride(0), tokens, out, logits.shape[1], BLOCK=BLOCK, num_warps=NUM_WARPS
        )
    return out


@triton.jit
def _top_kernel(
    logits, row_stride, copies, copy_ids, packed, out_ids, out_logprobs, vocab_size, k,
    LADDER: tl.constexpr, CAPACITY: tl.constexpr, BLOCK: tl.constexpr, SORTED: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    logits += row * row_stride
    copies += row * CAPACITY
    copy_ids += row * CAPACITY
    packed += row * SORTED
    top = largest(logits, vocab_size, BLOCK)
    mass, rung = survey(logits, vocab_size, top, 1.0, k, LADDER, BLOCK)
    # From here on logits are compared as they are; what the ladder rounded is allowed for.
    lowest = order_key(top + rung - 0.01 - tl.abs(top) * 1e-6)
    values = logits
    count = vocab_size
    number = copy_above(logits, copies, copy_ids, vocab_size, 0.0, 1.0, lowest, CAPACITY, BLOCK)
    is_copied = number <= CAPACITY
    if is_copied:
        values = copies
        count = number
    key, last_id = cut(
        values, copy_ids, count, is_copied, 0.0, 1.0, lowest, order_key(top), LEAST_KEY, LAST, tl.cast(k, tl.float32),
        False, BLOCK,
    )  # fmt: skip
    found = 0
    for start in range(0, count, BLOCK):
        keys, ids, _weights, inside = load_block(values, copy_ids, count, is_copied, start, 0.0, 1.0, BLOCK)
        kept = inside & ((keys > key) | ((keys == key) & (ids <= last_id)))
        places = found + tl.cumsum(kept.to(tl.int32), 0) - 1
        pairs = (keys.to(tl.int64) << 32) | (ids ^ LAST).to(tl.int64)
        tl.store(packed + places, pairs, mask=kept & (places < k))
        found += tl.sum(kept.to(tl.int32), 0)
    tl.debug_barrier()  # other threads read them
    places = tl.arange(0, SORTED)
    nothing = (places.to(tl.int64) * 0 + LEAST_KEY << 32) | LAST  # sorted last, and a token all the same
    pairs = tl.sort(tl.where(places < found, tl.load(packed + places), nothing), descending=True)
    logprobs = order_value((pairs >> 32).to(tl.int32)) - (top + tl.log(mass))
    tl.store(out_ids + row * k + places, (pairs & LAST) ^ LAST, mask=places < k)
    tl.store(out_logprobs + row * k + places, logprobs, mask=places < k)


def top_logprobs(logits: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k likeliest tokens of ``logits`` floating [B, V] (rows contiguous): ids int64 [B, k], likeliest first (of
    equals the lower id), and their log-probabilities float32 [B, k]. Up to :data:`MOST` they are selected, not sorted.

    Floor: the logits' bytes, read once (two more readings come from the cache).

    Raises:
        ValueError: k is not between 1 and V.
    """
    number, vocab = logits.shape
    if not 1 <= k <= vocab:
        raise ValueError(f"k={k} must be between 1 and the vocabulary's {vocab}")
    if k > MOST:
        return reference.top_logprobs(logits.float(), k)
    device, width = logits.device, triton.next_power_of_2(k)
    ids = torch.empty((number, k), dtype=torch.int64, device=device)
    logprobs = torch.empty((number, k), dtype=torch.float32, device=device)
    if number:
        copies = torch.empty((number, CAPACITY), dtype=logits.dtype, device=device)
        copy_ids = torch.empty((number, CAPACITY), dtype=torch.int32, device=device)
        packed = torch.empty((number, width), dtype=torch.int64, device=device)
        _top_kernel[(number,)](
            logits, logits.stride(0), copies, copy_ids, packed, ids, logprobs, vocab, k,
            LADDER=LADDER, CAPACITY=CAPACITY, BLOCK=BLOCK, SORTED=width, num_warps=NUM_WARPS,
        )  # fmt: skip
    return ids, logprobs
