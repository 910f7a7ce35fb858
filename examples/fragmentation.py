"""Why memory is paged: a hundred blocks, kept contiguously and kept in pages.

Run: python examples/fragmentation.py
"""

import torch

from octavo import PagedKVCache
from octavo.errors import OutOfBlocksError
from octavo.memory import ContiguousAllocator

contiguous = ContiguousAllocator(100)
paged = PagedKVCache(num_blocks=100, block_size=16, num_layers=1, num_kv_heads=1, head_dim=8, dtype=torch.float32)

# A takes 40 blocks and B takes 40; 20 are left. Then A leaves.
address = contiguous.allocate(40)
contiguous.allocate(40)
a, b = paged.sequence("A"), paged.sequence("B")
a.append_tokens(40 * 16)
b.append_tokens(40 * 16)
contiguous.release(address)
a.free()
print(f"contiguous: {contiguous.num_free} blocks are free, in holes of {contiguous.holes}")
print(f"paged:      {paged.usage().num_free} blocks are free")

# C needs 50: fewer than are free.
try:
    contiguous.allocate(50)
except OutOfBlocksError as error:
    print(f"contiguous: C does not fit: {error}")
c = paged.sequence("C")
c.append_tokens(50 * 16)
table = c.block_table
print(f"paged:      C fits, in {len(table)} blocks anywhere: {table[:5]} ... {table[-5:]}")

# A C of 30 would have fitted either way: the hole of 40 is large enough for it. Fragmentation does not make memory
# smaller, it makes it useless to large requests first.
contiguous.allocate(30)
print(f"contiguous: a C of 30 does fit, into the larger hole; the holes are now {contiguous.holes}")
