"""What the calls of one step have in common, worked out once."""

from __future__ import annotations

from typing import NamedTuple

import torch

from octavo.kernels.cpu import checks
from octavo.kernels.cpu.attention import prefill_matrix
from octavo.kernels.cpu.attention.words import (
    DECODES,
    LANES,
    PARTITION,
    TILE_KEYS,
    TILES,
    pack_plan,
)
from octavo.kernels.cpu.emitter import WIDTH
from octavo.kernels.cpu.launch import (
    num_threads,
)
from octavo.kernels.cpu.panels import MATRIX_UNIT
from octavo.kernels.cpu.tiles import (
    NO_WINDOW,
)
from octavo.kernels.metadata import AttentionMetadata

SMALL_DECODE, SMALL_TILES, SMALL_WRITE = 200_000, 1_000_000, 30_000
"""Products of queries and keys (decode, tiles) and items (write) that one thread does in some 20 microseconds: for
fewer, others are not called. They could save little, and where cores are shared a thread that is called may be late."""


def decodes(max_query: int, dim: int, batch_invariant: bool) -> bool:
    """Whether a batch with so many rows of a sequence at the most is decoded: every sequence brings one row, and heads
    of ``dim`` are whole vectors. Attention of such a batch is one launch, and can be recorded."""
    return max_query == 1 and not batch_invariant and dim % WIDTH == 0


class Needs(NamedTuple):
    """What a plan is made from."""

    meta: AttentionMetadata
    cache: checks.Cache
    num_heads: int
    window: int | None
    batch_invariant: bool


class Plan(NamedTuple):
    """What the calls of one step have in common: they differ by layer only."""

    batch: checks.Batch
    mode: int
    tasks: int
    threads: int
    write_threads: int
    counters: int  #: bytes at the start of the shared memory that must be zero
    shared: int  #: bytes
    stride: int  #: bytes of scratch of each thread
    words: bytes  #: the kernel's arguments from PAGE on, but for the shared memory's address


def make_plan(
    batch: checks.Batch, cache: checks.Cache, num_heads: int, window: int | None, batch_invariant: bool, threads: int
) -> Plan:
    """Choose between decode and tiles, and how to divide the work.

    Raises:
        ValueError: the parts do not fit each other.
    """
    kv_heads, dim = cache.num_kv_heads, cache.dim
    if num_heads % kv_heads:
        raise ValueError(f"{num_heads} query heads cannot share {kv_heads} KV heads: not a multiple")
    if window is not None and window < 1:
        raise ValueError(f"window={window} must be at least 1, or None")
    group = num_heads // kv_heads
    pairs = batch.num_seqs * kv_heads
    tiles_only = batch_invariant or dim % WIDTH != 0
    sees = batch.max_context if window is None else min(window, batch.max_context)
    parts = counters = 0
    words = 4 * (group * (3 * dim + PARTITION + 4) + 3 * dim)
    if decodes(batch.max_query, dim, batch_invariant):
        mode = DECODES
        if threads > 1 and pairs < 8 * threads and sees > PARTITION:
            # keys that are seen may straddle one border more than their number says
            parts = (sees + PARTITION - 2) // PARTITION + 1
            counters = 8 * pairs
        tasks = pairs * (parts or 1)
        shared = counters + tasks * 4 * group * (dim + 2) if parts else 0
        busy = threads if pairs * group * dim * sees > SMALL_DECODE else 1
    else:
        mode, tasks = TILES, 0
        busy = threads if batch.num_rows * num_heads * dim * sees > SMALL_TILES else 1
        padded = -(-dim // WIDTH) * WIDTH
        words = max(words, 4 * (2 * padded * LANES + TILE_KEYS * (LANES + padded) + 4 * LANES + 3 * dim))
        if MATRIX_UNIT:
            words = max(words, 4 * prefill_matrix.scratch(dim))
        shared = 16 * (2 * batch.num_seqs + batch.num_rows * group // LANES)
    return Plan(
        batch,
        mode,
        tasks,
        busy,
        threads if batch.num_rows * kv_heads * dim > SMALL_WRITE else 1,
        counters,
        shared + 63 & -64,
        words + 127 & -64,
        pack_plan.pack(
            cache.page,
            cache.head,
            kv_heads * cache.head,
            cache.scales,
            cache.block_size,
            cache.dtype,
            kv_heads,
            dim,
            num_heads,
            NO_WINDOW if window is None else window,
            parts,
            tiles_only,
            batch.num_seqs,
            batch.tables,
            batch.table_stride,
            batch.query_start,
            batch.context_len,
            batch.positions,
            0,
        ),
    )


class Plans:
    """The plans of the latest batch: one for each kind of layer of each layer group."""

    def __init__(self) -> None:
        # the batch's query_start, and its plans by kind of layer, beside the metadata that each was made for
        self._latest: tuple[torch.Tensor | None, dict[tuple[object, ...], tuple[AttentionMetadata, Plan]]] = (None, {})

    def find(self, needs: Needs) -> Plan:
        """The plan for a call, made anew where the batch is not the latest one. The metadata of a batch's layer groups
        share their ``query_start``; by that they are known as one batch."""
        meta, cache, num_heads, window, batch_invariant = needs
        threads = num_threads()
        latest, plans = self._latest
        key = (id(meta), num_heads, window, batch_invariant, threads, cache)
        if latest is meta.query_start:
            found = plans.get(key)
            if found is not None:
                return found[1]  # what holds ``meta``: its id is no other's
        plan = make_plan(checks.batch(meta), cache, num_heads, window, batch_invariant, threads)
        held = plans if latest is meta.query_start else {}
        self._latest = (meta.query_start, {**held, key: (meta, plan)})
        return plan


PLANS = Plans()
