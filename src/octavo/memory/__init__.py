"""Blocks, tables, sharing, the prefix tree: who holds which page of KV memory. No torch, no clock, no I/O."""

from octavo.memory.contiguous import ContiguousAllocator
from octavo.memory.departure import Departure
from octavo.memory.host_pool import HostPool
from octavo.memory.manager import MemoryManager
from octavo.memory.pool import BlockPool
from octavo.memory.prefix_tree import PrefixTree
from octavo.memory.snapshot import MemorySnapshot

__all__ = ["BlockPool", "ContiguousAllocator", "Departure", "HostPool", "MemoryManager", "MemorySnapshot", "PrefixTree"]
