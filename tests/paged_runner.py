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
        groups = config.layer_groups
        layout = KvLayout(groups[0].num_layers, config.num_kv_heads, config.head_dim, block_size, decoder.dtype)
        self.decoder = decoder
        self.block_size = block_size
        self.kv = layout.view(layout.allocate(num_blocks))
        self.kv.fill_(float("nan"))
        self.free = list(range(num_blocks))
        random.Random(seed).shuffle(self.free)
        self.num_groups = len(groups)
        self.blocks: dict[object, list[list[int]]] = {}  # a table for each layer group
        self.lengths: dict[object, int] = {}

    def metadata(self, chunks: Mapping[object, Sequence[int]]) -> list[AttentionMetadata]:
        """Room for the chunks, and what the kernels need to know of them, for each layer group."""
        starts, contexts, positions = [0], [], []
        for name, tokens in chunks.items():
            begin = self.lengths.get(name, 0)
            end = begin + len(tokens)
            for table in self.blocks.setdefault(name, [[] for _ in range(self.num_groups)]):
                while len(table) * self.block_size < end:
                    table.append(self.free.pop())
            self.lengths[name] = end
            starts.append(starts[-1] + len(tokens))
            contexts.append(end)
            positions.append(range(begin, end))
        query_start = torch.tensor(starts, dtype=torch.int32)
        made = []
        for group in range(self.num_groups):
            tables = [self.blocks[name][group] for name in chunks]
            width = max(map(len, tables))
            slots = [
                table[at // self.block_size] * self.block_size + at % self.block_size
                for table, places in zip(tables, positions, strict=True)
                for at in places
            ]
            made.append(
                AttentionMetadata(
                    query_start=query_start,
                    context_len=torch.tensor(contexts, dtype=torch.int32),
                    block_tables=torch.tensor(
                        [table + [0] * (width - len(table)) for table in tables], dtype=torch.int32
                    ),
                    positions=torch.tensor([at for places in positions for at in places], dtype=torch.int64),
                    slots=torch.tensor(slots, dtype=torch.int64),
                    max_query=max(len(tokens) for tokens in chunks.values()),
                    max_context=max(contexts),
                )
            )
        return made

    def run(self, chunks: Mapping[object, Sequence[int]], rows: Sequence[int] | None = None) -> torch.Tensor:
        """Logits of the rows wanted [all], a copy."""
        flat = torch.tensor([token for tokens in chunks.values() for token in tokens], dtype=torch.int64)
        wanted = None if rows is None else torch.tensor(list(rows), dtype=torch.int64)
        return self.decoder.forward(flat, self.kv, self.metadata(chunks), wanted).clone()
