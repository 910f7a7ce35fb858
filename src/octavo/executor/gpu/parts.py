"""A step done in parts, for want of memory to do it at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Any

from octavo.plan import Chunk, ChunkResult, Want

NO_MEMORY = "the device's memory did not suffice to compute a single token of this request"

Chunks = tuple[Chunk, ...]


@dataclass(frozen=True, slots=True)
class NothingRead:
    """Reads the results of chunks that could not be computed: nothing was fetched for them."""

    count: int

    def results(self, fetched: list[list[Any]]) -> tuple[ChunkResult, ...]:
        """An error for each."""
        return (ChunkResult(error=NO_MEMORY),) * self.count


def halves(chunks: Chunks) -> tuple[Chunks, Chunks] | None:
    """Two steps that do, one after the other, what one of these chunks would, each with about half its tokens. (Chunks
    of one step do not read what others of it write.) None where there is nothing to divide."""
    if len(chunks) == 1:
        divided = _divided(chunks[0])
        return None if divided is None else ((divided[0],), (divided[1],))
    sums = list(accumulate(chunk.count for chunk in chunks))
    place = next(place for place, done in enumerate(sums, 1) if 2 * done >= sums[-1])
    place = min(place, len(chunks) - 1)
    return chunks[:place], chunks[place:]


def joined(chunks: Sequence[Chunk], results: Sequence[ChunkResult]) -> tuple[ChunkResult, ...]:
    """The results of a step's chunks, of those of its parts in order: a chunk that was divided has several."""
    pairs = zip(chunks, results, strict=True)
    return tuple(_one([result for _, result in own]) for _, own in groupby(pairs, lambda pair: pair[0].slot))


def _one(results: list[ChunkResult]) -> ChunkResult:
    if len(results) == 1:
        return results[0]
    error = next((result.error for result in results if result.error is not None), None)
    if error is not None:
        return ChunkResult(error=error)
    return results[-1]._replace(prompt=tuple(sample for result in results for sample in result.prompt))


def _divided(chunk: Chunk) -> tuple[Chunk, Chunk] | None:
    """The first brings all blocks, the second draws; guesses stay with the token that they follow."""
    count = min(chunk.count // 2, chunk.count - 1 - chunk.drafts)
    if count < 1:
        return None
    middle = chunk.start + count
    first = chunk._replace(
        count=count,
        tokens=chunk.tokens[:count],
        outputs_from=min(chunk.outputs_from, middle),
        want=Want.NONE,
        draws=(),
        drafts=0,
    )
    second = chunk._replace(
        start=middle,
        count=chunk.count - count,
        tokens=chunk.tokens[count:],
        blocks_from=tuple(kept + len(own) for kept, own in zip(chunk.blocks_from, chunk.blocks, strict=True)),
        blocks=((),) * len(chunk.blocks),
        outputs_from=max(chunk.outputs_from, middle),
    )
    return first, second
