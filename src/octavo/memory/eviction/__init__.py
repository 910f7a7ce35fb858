"""Which cached block goes when room is needed: one small interface, several policies."""

from collections.abc import Callable

from octavo.memory.eviction.arc import ARC
from octavo.memory.eviction.fifo import FIFO
from octavo.memory.eviction.lfu import LFU
from octavo.memory.eviction.lru import LRU
from octavo.memory.eviction.policy import Eviction
from octavo.memory.eviction.prefix import PrefixAware

__all__ = ["ARC", "EVICTIONS", "FIFO", "LFU", "LRU", "Eviction", "PrefixAware"]

EVICTIONS: dict[str, Callable[[int], Eviction]] = {
    "lru": LRU,
    "fifo": FIFO,
    "lfu": LFU,
    "arc": ARC,
    "prefix": PrefixAware,
}
"""By name; each is made with the number of blocks there are."""
