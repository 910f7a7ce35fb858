"""Which rows of a batch are read, and what their results mean for the chunks that they belong to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray

from octavo.executor.batch import Batch
from octavo.executor.slots import SlotTable
from octavo.plan import Chunk, ChunkResult, Sample


@dataclass(frozen=True, slots=True)
class Reads:
    """``R`` rows of the flat batch whose logits are wanted: of each chunk that wants any its last one, and where it
    has drafts the rows before them, too."""

    chunks: NDArray[np.int64]  #: [C], the chunks that are read
    rows: NDArray[np.int64]  #: [R], of the flat batch
    slots: NDArray[np.int64]  #: [R]
    positions: NDArray[np.int64]  #: [R], of the token that each row's logits are for
    wants: NDArray[np.uint8]  #: [R], each a Want
    draws: tuple[tuple[int, ...], ...]  #: R times
    counts: NDArray[np.int64] | None  #: [C], rows of each chunk; None: one each

    @classmethod
    def of(cls, batch: Batch) -> Reads:
        """What the batch's chunks want."""
        chunks = np.flatnonzero(batch.wants)  # Want.NONE is 0
        everything = len(chunks) == len(batch.wants)
        last = batch.query_start[chunks + 1].astype(np.int64) - 1
        draws = batch.draws if everything else tuple(batch.draws[index] for index in chunks.tolist())
        if not any(batch.drafts):
            return cls(chunks, last, batch.slots[chunks], batch.ends[chunks], batch.wants[chunks], draws, None)
        drafts = np.array(batch.drafts, np.int64)[chunks]
        counts = 1 + drafts
        owner = np.repeat(np.arange(len(chunks)), counts)
        before_last = counts.cumsum()[owner] - 1 - np.arange(len(owner))
        return cls(
            chunks,
            last[owner] - before_last,
            batch.slots[chunks[owner]],
            batch.ends[chunks[owner]] - before_last,
            batch.wants[chunks[owner]],
            tuple(draws[index] for index in owner.tolist()),
            counts,
        )

    def gather(self, batch: Batch, results: list[ChunkResult], state: SlotTable) -> list[ChunkResult]:
        """The rows' results by chunk, for every chunk of the batch. Where drafts were rejected, the slot's last sample
        becomes the one that counts."""
        if self.counts is not None:
            results = self._verified(batch, results, state)
        if len(self.chunks) == len(batch.wants):
            return results
        spread = [ChunkResult()] * len(batch.wants)
        for index, result in zip(self.chunks.tolist(), results, strict=True):
            spread[index] = result
        return spread

    def _verified(self, batch: Batch, results: list[ChunkResult], state: SlotTable) -> list[ChunkResult]:
        assert self.counts is not None
        verified, begin = [], 0
        for index, count in zip(self.chunks.tolist(), self.counts.tolist(), strict=True):
            result = results[begin]
            if count > 1:
                result = verify(batch.chunks[index], results[begin : begin + count])
                if result.samples:
                    state.last_token[batch.slots[index]] = result.samples[-1].token
            verified.append(result)
            begin += count
        return verified


def verify(chunk: Chunk, rows: Sequence[ChunkResult]) -> ChunkResult:
    """What a chunk with drafts brings, of what each of its last ``1 + drafts`` rows drew: the samples up to the first
    that is not the draft which follows it. What comes after that was computed from a wrong token, and counts for
    nothing, an error included; and an error after a good sample waits for the step that begins there."""
    samples: list[Sample] = []
    for row, draft in zip_longest(rows, chunk.tokens[len(chunk.tokens) - chunk.drafts :]):
        if row.error is not None:
            return ChunkResult(tuple(samples)) if samples else row
        samples += row.samples
        if row.samples[0].token != draft:
            break
    return ChunkResult(tuple(samples))
