"""Which rows of a step are drawn from, and how often."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from octavo.executor.gpu.columns import ChunkColumns
from octavo.executor.gpu.state import DeviceSlots
from octavo.plan import Want


@dataclass(frozen=True, slots=True)
class Draws:
    """``D`` draws from ``R`` rows: of each chunk that samples its last row, and where it has drafts those before them,
    too; and ``B`` rows of beams, from which nothing is drawn but likelihoods are wanted."""

    rows: NDArray[np.int64]  #: [R + B], of the flat batch: those drawn from come first
    owners: NDArray[np.int64]  #: [R + B], the slot of each row
    ends: NDArray[np.int64]  #: [R + B], the position of the token that each row is for
    sources: NDArray[np.int64]  #: [D], which of the R rows each draw is from
    indexes: NDArray[np.int64]  #: [D], noise indexes
    spans: tuple[tuple[int, int], ...]  #: N times: a chunk's draws begin and end here; a beam's row, among the B
    own: NDArray[np.int64]  #: [K], the draws that become their slot's last sample

    @property
    def num_beams(self) -> int:
        """``B``."""
        return len(self.rows) - self.num_drawn

    @property
    def num_drawn(self) -> int:
        """``R``."""
        return int(self.sources[-1]) + 1 if len(self.sources) else 0

    @property
    def once(self) -> bool:
        """Whether each row is drawn from once."""
        return len(self.sources) == self.num_drawn

    @classmethod
    def of(cls, columns: ChunkColumns, state: DeviceSlots) -> Draws:
        """What the chunks want. The host notes which slots will have a sample of their own."""
        drawn: list[tuple[int, int, int]] = []  # row, slot, position
        beams: list[tuple[int, int, int]] = []
        sources: list[int] = []
        indexes: list[int] = []
        own: list[int] = []
        spans: list[tuple[int, int]] = []
        lasts = (columns.query_start[1:] - 1).tolist()
        for chunk, end, last in zip(columns.chunks, columns.ends.tolist(), lasts, strict=True):
            if chunk.want is Want.LOGPROBS:
                spans.append((len(beams), len(beams) + 1))
                beams.append((last, chunk.slot, end))
                continue
            begin, draws = len(indexes), chunk.draws
            if draws:
                if chunk.drafts:  # which of its draws counts is known after the host has looked at them
                    state.sampled[chunk.slot] = False
                else:
                    index = int(state.index[chunk.slot])
                    own.append(begin + (draws.index(index) if index in draws else 0))
                    state.sampled[chunk.slot] = True
                for back in range(chunk.drafts, -1, -1):
                    sources += [len(drawn)] * len(draws)
                    drawn.append((last - back, chunk.slot, end - back))
                    indexes += draws
            spans.append((begin, len(indexes)))
        columns_ = np.array(drawn + beams, np.int64).reshape(-1, 3).T
        rows, owners, ends = np.ascontiguousarray(columns_)
        return cls(
            rows, owners, ends, np.array(sources, np.int64), np.array(indexes, np.int64), tuple(spans),
            np.array(own, np.int64),
        )  # fmt: skip
