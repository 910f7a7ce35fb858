"""New tokens of several sequences, and what kernels are told of them."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from octavo.kernels import AttentionMetadata
from octavo.paged_kv.sequence import PagedSequence


class PagedBatch:
    """New tokens of several sequences, laid end to end in the order they were given: rows of the tensors that
    :meth:`PagedKVCache.write` and :meth:`PagedKVCache.attend` take."""

    __slots__ = ("_unwritten", "counts", "generations", "metadata", "num_tokens", "sequences")

    def __init__(
        self,
        sequences: tuple[PagedSequence, ...],
        counts: tuple[int, ...],
        metadata: AttentionMetadata,
        num_layers: int,
    ) -> None:
        self.sequences = sequences
        self.counts = counts
        self.metadata = metadata  #: what the kernels know of it
        self.num_tokens = sum(counts)
        self.generations = tuple(seq._generation for seq in sequences)
        self._unwritten = set(range(num_layers))

    @property
    def positions(self) -> torch.Tensor:
        """int64 ``[num_tokens]``: each row's position in its sequence (for rotary embeddings)."""
        return self.metadata.positions

    def rollback(self) -> None:
        """Forget the batch: its tokens count as never written, though their room stays reserved."""
        for seq in self.sequences:
            if seq._batch is self:
                seq._inner.num_scheduled = seq._inner.num_computed
                seq._batch = None
                seq._generation += 1

    def _wrote(self, layer: int) -> None:
        self._unwritten.discard(layer)
        if not self._unwritten:
            for seq in self.sequences:
                if seq._batch is self:
                    seq._inner.num_computed = seq._inner.num_scheduled
                    seq._batch = None


def describe(counts: Mapping[PagedSequence, int], block_size: int, device: torch.device) -> AttentionMetadata:
    """What kernels are told of a batch: each sequence's last ``counts`` tokens, room for which is reserved."""
    number, sizes = len(counts), torch.tensor(list(counts.values()))
    ends = torch.tensor([seq._inner.num_scheduled for seq in counts])
    starts = torch.zeros(number + 1, dtype=torch.int64)
    torch.cumsum(sizes, 0, out=starts[1:])
    width = max(len(seq._inner.tables[0].blocks) for seq in counts)
    tables = torch.zeros(number, width, dtype=torch.int32)
    for row, seq in enumerate(counts):
        blocks = seq._inner.tables[0].blocks
        tables[row, : len(blocks)] = torch.tensor(blocks, dtype=torch.int32)
    owner = torch.repeat_interleave(torch.arange(number), sizes)
    positions = torch.arange(int(starts[-1])) - starts[owner] + (ends - sizes)[owner]
    slots = tables[owner, positions // block_size].long() * block_size + positions % block_size
    return AttentionMetadata(
        query_start=starts.to(device, torch.int32),
        context_len=ends.to(device, torch.int32),
        block_tables=tables.to(device),
        positions=positions.to(device),
        slots=slots.to(device),
        max_query=int(sizes.max()),
        max_context=int(ends.max()),
    )
