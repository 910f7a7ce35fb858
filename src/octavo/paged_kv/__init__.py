"""Paged KV memory for anyone's PyTorch model: the engine's memory manager with tensors behind it.

This is the one package that joins ``memory/`` and ``kernels/``.
"""

from octavo.paged_kv.batch import PagedBatch
from octavo.paged_kv.cache import CacheUsage, PagedKVCache
from octavo.paged_kv.sequence import PagedSequence

__all__ = ["CacheUsage", "PagedBatch", "PagedKVCache", "PagedSequence"]
