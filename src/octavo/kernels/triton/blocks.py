"""Copying whole blocks."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from octavo.kernels.triton.launch import ceil_div, launch

CHUNK_BYTES = 4096
"""What a program copies of every page: 32 bytes a thread, of each of the pairs that are under way together."""

NUM_WARPS = 4


@triton.jit(do_not_specialize=["num_pairs"])
def _copy_blocks_kernel(cache, sources, targets, num_pairs, page, CHUNK: tl.constexpr):
    """One stretch of every page. Pairs are taken four by four: all four are read before any is written, and where one
    reads what one before it has yet to write, it takes that one's."""
    place = tl.program_id(0) * CHUNK + tl.arange(0, CHUNK)
    inside = place < page
    for first in range(0, num_pairs, 4):
        has_b, has_c, has_d = first + 1 < num_pairs, first + 2 < num_pairs, first + 3 < num_pairs
        pair = sources + first
        source_a = tl.load(pair)
        source_b = tl.load(pair + 1, mask=has_b, other=-1)
        source_c = tl.load(pair + 2, mask=has_c, other=-1)
        source_d = tl.load(pair + 3, mask=has_d, other=-1)
        pair = targets + first
        target_a = tl.load(pair)
        target_b = tl.load(pair + 1, mask=has_b, other=-2)
        target_c = tl.load(pair + 2, mask=has_c, other=-2)
        target_d = tl.load(pair + 3, mask=has_d, other=-2)
        a = tl.load(cache + source_a * page + place, mask=inside)
        b = tl.load(cache + source_b * page + place, mask=inside & has_b)
        c = tl.load(cache + source_c * page + place, mask=inside & has_c)
        d = tl.load(cache + source_d * page + place, mask=inside & has_d)
        b = tl.where(source_b == target_a, a, b)
        c = tl.where(source_c == target_a, a, c)
        c = tl.where(source_c == target_b, b, c)
        d = tl.where(source_d == target_a, a, d)
        d = tl.where(source_d == target_b, b, d)
        d = tl.where(source_d == target_c, c, d)
        tl.store(cache + target_a * page + place, a, mask=inside)
        tl.store(cache + target_b * page + place, b, mask=inside & has_b)
        tl.store(cache + target_c * page + place, c, mask=inside & has_c)
        tl.store(cache + target_d * page + place, d, mask=inside & has_d)


def copy_blocks(cache: torch.Tensor, sources: torch.Tensor, targets: torch.Tensor) -> None:
    """Copy whole pages, pair by pair and in order: cache uint8 [num_blocks, page_bytes], both ids int64 [N], on the
    device.

    Order needs no waiting between programs: each has one stretch of all pages, and a thread writes and reads the same
    bytes of each.

    Floor: 2 page_bytes a pair.
    """
    if not sources.shape[0]:
        return
    words = cache.view(torch.int32) if cache.shape[1] % 4 == 0 else cache
    page, chunk = words.shape[1], CHUNK_BYTES // words.itemsize
    launch(
        _copy_blocks_kernel,
        (ceil_div(page, chunk),),
        words,
        sources,
        targets,
        sources.shape[0],
        page,
        CHUNK=chunk,
        num_warps=NUM_WARPS,
    )
