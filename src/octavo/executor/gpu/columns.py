"""A plan's chunks as columns, checked against what the slots hold."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from octavo.errors import EngineError
from octavo.executor.gpu.state import DeviceSlots
from octavo.plan import PENDING, Chunk, Want


@dataclass(frozen=True, slots=True)
class ChunkColumns:
    """``N`` chunks of ``T`` tokens in all; chunk ``i`` owns rows ``query_start[i] : query_start[i + 1]``."""

    chunks: tuple[Chunk, ...]
    slots: NDArray[np.int64]  #: [N]
    starts: NDArray[np.int64]  #: [N], position of each chunk's first token
    ends: NDArray[np.int64]  #: [N], position after each chunk's last token
    counts: NDArray[np.int64]  #: [N]
    query_start: NDArray[np.int32]  #: [N + 1]
    token_ids: NDArray[np.int64]  #: [T], PENDING where the device knows them
    has_pending: bool
    outputs_from: tuple[int, ...]
    wants: tuple[Want, ...]
    draws: tuple[tuple[int, ...], ...]
    drafts: tuple[int, ...]
    places: NDArray[np.int64]  #: [U], entries of the flattened tables that this step sets
    blocks: NDArray[np.int32]  #: [U], to these

    @property
    def total(self) -> int:
        """``T``."""
        return len(self.token_ids)

    @property
    def draws_once(self) -> bool:
        """Whether every chunk is one token from which one token is drawn: a pure decode step."""
        return (
            self.total == len(self.chunks)
            and self.wants.count(Want.SAMPLE) == len(self.chunks)
            and not any(self.drafts)
            and [*map(len, self.draws)].count(1) == len(self.draws)
        )

    @classmethod
    def of(cls, chunks: tuple[Chunk, ...], state: DeviceSlots, block_size: int) -> ChunkColumns:
        """Take chunks in: the host's part of the slots is brought up to date with them.

        Raises:
            EngineError: a chunk does not follow from what the slot holds (a bug in whoever planned it).
        """
        columns = zip(*chunks, strict=True)
        slots_, seq_ids, starts_, counts_, tokens_, keeps, added, outputs_from, wants, draws, drafts = columns
        number = len(chunks)
        slots, ids, starts, counts = (
            np.fromiter(column, np.int64, count=number) for column in (slots_, seq_ids, starts_, counts_)
        )
        ends = starts + counts
        query_start = np.zeros(number + 1, np.int32)
        np.cumsum(counts, out=query_start[1:])
        total = int(query_start[-1])
        strangers = state.seq_id[slots] != ids
        if strangers.any():
            row = int(strangers.argmax())
            raise EngineError(f"slot {slots_[row]} does not hold sequence {seq_ids[row]}")
        if min(counts_) < 1 or [*map(len, tokens_)] != [*counts_]:
            raise EngineError("a chunk's count and its tokens disagree")
        token_ids = np.fromiter(chain.from_iterable(tokens_), np.int64, count=total)
        pending = token_ids == PENDING
        has_pending = bool(pending.any())
        if has_pending:
            owner = slots if total == number else np.repeat(slots, counts)
            if not state.sampled[owner[pending]].all():
                raise EngineError("a chunk waits for a sample that its sequence has not drawn")
        places, blocks = _update_tables(slots, keeps, added, state)
        short = (state.table_len[slots] * block_size < ends[:, None]).any(axis=1)
        if short.any():
            row = int(short.argmax())
            raise EngineError(f"sequence {seq_ids[row]}: its tables do not reach position {ends[row] - 1}")
        return cls(
            chunks,
            slots,
            starts,
            ends,
            counts,
            query_start,
            token_ids,
            has_pending,
            outputs_from,
            wants,
            draws,
            drafts,
            places,
            blocks,
        )


def _update_tables(
    slots: NDArray[np.int64],
    keeps: tuple[tuple[int, ...], ...],
    added: tuple[tuple[tuple[int, ...], ...], ...],
    state: DeviceSlots,
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Cut and lengthen the tables, as far as the host knows them; what the device has to set."""
    kept = np.fromiter(chain.from_iterable(keeps), np.int32, count=len(slots) * state.num_groups)
    kept = kept.reshape(len(slots), -1)
    if (kept > state.table_len[slots]).any():
        raise EngineError("a chunk keeps more blocks than its table has")
    state.table_len[slots] = kept
    places: list[int] = []
    blocks: list[int] = []
    rows, nothing = state.num_slots + 1, ((),) * state.num_groups
    # In the steady state one chunk in block_size.
    for row in [row for row, groups in enumerate(added) if groups != nothing]:
        groups, slot = added[row], int(slots[row])
        for group, own in enumerate(groups):
            if not own:
                continue
            first = int(kept[row, group])
            end = first + len(own)
            if end > state.width:
                raise EngineError(
                    f"sequence {state.seq_id[slot]}: a table of {first} blocks cannot take {len(own)} more (the "
                    f"longest has {state.width})"
                )
            begin = (group * rows + slot) * state.width + first
            places.extend(range(begin, begin + len(own)))
            blocks.extend(own)
            state.table_len[slot, group] = end
    return np.array(places, np.int64), np.array(blocks, np.int32)
