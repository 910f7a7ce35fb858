"""Paged KV memory in an attention layer of your own, checked against dense attention. No engine, no bundled model.

Run: python examples/paged_attention_layer.py
"""

import torch
from torch import nn
from torch.nn import functional as F

from octavo import PagedKVCache
from octavo.paged_kv import PagedBatch


class Attention(nn.Module):
    """Grouped-query attention whose keys and values live in a PagedKVCache."""

    def __init__(self, layer: int, hidden: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.layer, self.heads, self.kv_heads, self.dim = layer, heads, kv_heads, hidden // heads
        self.qkv = nn.Linear(hidden, (heads + 2 * kv_heads) * self.dim, bias=False)
        self.out = nn.Linear(hidden, hidden, bias=False)

    def split(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """x [tokens, hidden] to q, k and v, each [tokens, heads, dim]."""
        return self.qkv(x).unflatten(-1, (-1, self.dim)).split([self.heads, self.kv_heads, self.kv_heads], dim=1)

    def forward(self, x: torch.Tensor, cache: PagedKVCache, batch: PagedBatch) -> torch.Tensor:
        """x [tokens of the batch, hidden]; earlier tokens are read from the cache's blocks."""
        q, k, v = self.split(x)
        cache.write(self.layer, batch, k, v)
        return self.out(cache.attend(self.layer, batch, q).flatten(1))

    def dense(self, x: torch.Tensor) -> torch.Tensor:
        """The same for one whole sequence, as PyTorch does it."""
        q, k, v = (part.transpose(0, 1) for part in self.split(x))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.out(attended.transpose(0, 1).flatten(1))


torch.manual_seed(0)
layers = nn.ModuleList(Attention(i, hidden=256, heads=8, kv_heads=2) for i in range(2))
cache = PagedKVCache(num_blocks=16, block_size=16, num_layers=2, num_kv_heads=2, head_dim=32)


@torch.inference_mode()
def run(tokens: dict) -> dict:
    """Put new tokens of several sequences ([count, 256] each) through both layers, all in one flat batch."""
    batch = cache.batch({seq: len(x) for seq, x in tokens.items()})
    x = torch.cat(list(tokens.values()))
    for layer in layers:
        x = x + layer(x, cache, batch)
    return dict(zip(tokens, x.split(batch.counts), strict=True))


def dense(x: torch.Tensor) -> torch.Tensor:
    """All tokens of one sequence through both layers, no cache."""
    with torch.inference_mode():
        for layer in layers:
            x = x + layer.dense(x)
    return x


prompt, other = torch.randn(37, 256), torch.randn(5, 256)
a, b = cache.sequence("a"), cache.sequence("b")
run({a: prompt, b: other})  # two prompts in one pass
c = a.fork("c")  # shares all of a's blocks
step_a, step_b, step_c = torch.randn(3, 1, 256)
last = run({a: step_a, b: step_b, c: step_c})  # one more token each; a and c part ways here

for seq, whole in {a: [prompt, step_a], b: [other, step_b], c: [prompt, step_c]}.items():
    error = (last[seq] - dense(torch.cat(whole))[-1:]).abs().max().item()
    print(f"{seq.name}: {len(seq)} tokens in blocks {seq.block_table}, largest difference from dense {error:.1e}")
    assert error < 1e-4
print(cache.usage())
