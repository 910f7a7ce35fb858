"""A decoder run by hand: sequences in shuffled blocks, any mixture of chunks a step."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import torch

from octavo.kernels import AttentionMetadata, KvLayout
from octavo.model import Decoder


class PagedRunner:
    """Gives every sequence its blocks from a shuffled pool and keeps count of its tokens.

    The pool starts out as NaN, so that reading a slot never written cannot go unnoticed.
    """

    def __init__(self, decoder: Decoder, *, num_blocks: int = 256, block_size: int = 16, seed: int = 0) -> None:
        config = decoder.config
        layout = KvLayout(config.num_layers, config.num_kv_heads, config.head_dim, block_size, decoder.dtype)
        self.decoder = decoder
        self.block_size = block_size
        self.kv = layout.view(layout.allocate(num_blocks))
        self.kv.fill_(float("nan"))
        self.free = list(range(num_blocks))
        random.Random(seed).shuffle(self.free)
        self.blocks: dict[object, list[int]] = {}
        self.lengths: dict[object, int] = {}

    def metadata(self, chunks: Mapping[object, Sequence[int]]) -> AttentionMetadata:
        """Room for the chunks, and what the kernels need to know of them."""
        starts, contexts, positions, slots = [0], [], [], []
        for name, tokens in chunks.items():
            begin = self.lengths.get(name, 0)
            end = begin + len(tokens)
            table = self.blocks.setdefault(name, [])
            while len(table) * self.block_size < end:
                table.append(self.free.pop())
            self.lengths[name] = end
            starts.append(starts[-1] + len(tokens))
            contexts.append(end)
            positions.extend(range(begin, end))
            slots.extend(
                table[at // self.block_size] * self.block_size + at % self.block_size for at in range(begin, end)
            )
        width = max(len(self.blocks[name]) for name in chunks)
        tables = [self.blocks[name] + [0] * (width - len(self.blocks[name])) for name in chunks]
        return AttentionMetadata(
            query_start=torch.tensor(starts, dtype=torch.int32),
            context_len=torch.tensor(contexts, dtype=torch.int32),
            block_tables=torch.tensor(tables, dtype=torch.int32),
            positions=torch.tensor(positions, dtype=torch.int64),
            slots=torch.tensor(slots, dtype=torch.int64),
            max_query=max(len(tokens) for tokens in chunks.values()),
            max_context=max(contexts),
        )

    def run(self, chunks: Mapping[object, Sequence[int]], rows: Sequence[int] | None = None) -> torch.Tensor:
        """Logits of the rows wanted [all], a copy."""
        flat = torch.tensor([token for tokens in chunks.values() for token in tokens], dtype=torch.int64)
        wanted = None if rows is None else torch.tensor(list(rows), dtype=torch.int64)
        return self.decoder.forward(flat, self.kv, self.metadata(chunks), wanted).clone()
