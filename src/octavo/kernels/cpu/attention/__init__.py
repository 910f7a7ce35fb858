"""Attention over paged keys and values (Kwon et al., PagedAttention, SOSP 2023) on a CPU.

A sequence that brings one token is *decoded*: keys and values are read straight from the blocks, once for all query
heads that share them. Its context is cut at multiples of ``PARTITION`` keys; each part has a softmax of its own, and
parts are joined in order (as in flash decoding, Dao et al. 2023). Where sequences are few the parts are spread over
threads; the arithmetic is the same.

A sequence that brings more is *prefilled* in tiles: up to ``LANES`` pairs of (token, query head) side by side, against
``TILE_KEYS`` keys at a time, with online softmax (Dao et al., FlashAttention, 2022). Tiles of keys start at multiples
of ``TILE_KEYS`` and a query's arithmetic stays in its lane, so its result depends on its own position and on nothing
else; with ``batch_invariant`` every sequence goes this way, and head sizes that are not a multiple of 16 always do. In
bfloat16, on a CPU with a matrix unit, the tiles' products are that unit's (``prefill_matrix.py``), by the same rule.
"""

from __future__ import annotations

from octavo.kernels.cpu.attention.entries import fused_attention, paged_attention, write_kv
from octavo.kernels.cpu.attention.plan import decodes

__all__ = ["decodes", "fused_attention", "paged_attention", "write_kv"]
