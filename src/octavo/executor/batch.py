"""A plan's chunks laid end to end: the flat batch that the decoder computes in one pass."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray

from octavo.errors import EngineError
from octavo.executor.slots import SlotTable
from octavo.kernels.metadata import AttentionMetadata
from octavo.plan import PENDING, Chunk


@dataclass(frozen=True, slots=True)
class Batch:
    """The chunks of a plan as tensors. ``T`` tokens from ``N`` chunks; chunk ``i`` owns rows
    ``query_start[i] : query_start[i + 1]``."""

    chunks: tuple[Chunk, ...]
    token_ids: torch.Tensor  #: int64 [T]
    positions: torch.Tensor  #: int64 [T]
    meta: tuple[AttentionMetadata, ...]  #: one for each layer group
    slots: NDArray[np.int64]  #: [N], each chunk's slot
    ends: NDArray[np.int64]  #: [N], position after each chunk's last token
    query_start: NDArray[np.int32]  #: [N + 1]
    wants: NDArray[np.uint8]  #: [N], each a Want
    draws: tuple[tuple[int, ...], ...]
    outputs_from: NDArray[np.int64]  #: [N]
    drafts: tuple[int, ...]  #: N times, how many of a chunk's last tokens are guesses


def build_batch(chunks: tuple[Chunk, ...], state: SlotTable, block_size: int) -> Batch:
    """Bring the slots up to date with a plan's chunks, and lay the chunks end to end.

    A slot's tables are cut and extended as each chunk says; PENDING becomes the slot's own last sample; histories that
    penalties look back at get the chunk's tokens.

    Raises:
        EngineError: a chunk does not follow from what the slot holds (a bug in whoever planned it).
    """
    # One transposition in C instead of eleven attributes of each chunk: this is every step's own cost.
    columns = zip(*chunks, strict=True)
    slots_, seq_ids, starts_, counts_, tokens_, keeps, added, outputs_from, wants, draws, drafts = columns
    number, groups = len(chunks), len(state.tables)
    slots = np.array(slots_, np.int64)
    starts = np.array(starts_, np.int64)
    counts = np.array(counts_, np.int64)
    ends = starts + counts
    query_start = np.zeros(number + 1, np.int32)
    np.cumsum(counts, out=query_start[1:])
    total = int(query_start[-1])
    strangers = state.seq_id[slots] != np.array(seq_ids, np.int64)
    if strangers.any():
        row = int(strangers.argmax())
        raise EngineError(f"slot {slots_[row]} does not hold sequence {seq_ids[row]}")
    if min(counts_) < 1 or [*map(len, tokens_)] != [*counts_]:
        raise EngineError("a chunk's count and its tokens disagree")

    token_ids = np.fromiter(chain.from_iterable(tokens_), np.int64, count=total)
    one_each = total == number
    owner = np.arange(number) if one_each else np.repeat(np.arange(number), counts)
    if token_ids.min() == PENDING:  # the only id below zero
        pending = token_ids == PENDING
        samples = state.last_token[slots][owner[pending]]
        if (samples < 0).any():
            raise EngineError("a chunk waits for a sample that its sequence has not drawn")
        token_ids[pending] = samples
    for row in np.flatnonzero(state.edited[slots]).tolist():
        edits = state.edits[slots_[row]]
        if edits is not None:
            edits.history.write(starts_[row], token_ids[query_start[row] : query_start[row + 1]])

    _update_tables(slots, np.fromiter(chain.from_iterable(keeps), np.int32, count=number * groups), added, state)
    needed = -(-ends // block_size)
    short = (state.table_len[slots] < needed[:, None]).any(axis=1)
    if short.any():
        row = int(short.argmax())
        raise EngineError(f"sequence {seq_ids[row]}: its tables do not reach position {ends[row] - 1}")

    positions = starts if one_each else np.arange(total) + np.repeat(starts - query_start[:-1], counts)
    logical, offset = np.divmod(positions, block_size)
    context = torch.from_numpy(ends.astype(np.int32))
    start = torch.from_numpy(query_start)
    position = torch.from_numpy(positions)
    max_query, max_context = int(counts.max()), int(ends.max())
    width = int(needed.max())
    meta = []
    for table in state.tables:
        rows = table[slots, :width]
        where = rows[owner, logical].astype(np.int64) * block_size + offset
        meta.append(
            AttentionMetadata(
                query_start=start,
                context_len=context,
                block_tables=torch.from_numpy(rows),
                positions=position,
                slots=torch.from_numpy(where),
                max_query=max_query,
                max_context=max_context,
            )
        )
    return Batch(
        chunks=chunks,
        token_ids=torch.from_numpy(token_ids),
        positions=position,
        meta=tuple(meta),
        slots=slots,
        ends=ends,
        query_start=query_start,
        wants=np.frombuffer(bytes(wants), np.uint8),
        draws=draws,
        outputs_from=np.array(outputs_from, np.int64),
        drafts=drafts,
    )


def _update_tables(
    slots: NDArray[np.int64],
    keeps: NDArray[np.int32],
    added: tuple[tuple[tuple[int, ...], ...], ...],
    state: SlotTable,
) -> None:
    kept = keeps.reshape(len(slots), -1)
    if (kept > state.table_len[slots]).any():
        raise EngineError("a chunk keeps more blocks than its table has")
    state.table_len[slots] = kept
    for row, groups in enumerate(added):
        if any(groups):  # in the steady state one chunk in block_size
            for group, blocks in enumerate(groups):
                state.extend(int(slots[row]), group, int(kept[row, group]), blocks)
