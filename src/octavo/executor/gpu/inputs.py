"""A step's flat inputs, made on the device from what little the host knows of it.

Block tables and last samples are there already (:class:`~octavo.executor.gpu.state.DeviceSlots`); the host sends one
packed buffer of numbers a step. A token that the plan in flight will draw is looked up where it was left: the host
never learns of it in time, and need not. (vLLM's second model runner and SGLang's overlapped scheduler do likewise.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from octavo.executor.gpu.accelerator import Accelerator
from octavo.executor.gpu.columns import ChunkColumns
from octavo.executor.gpu.mailbox import ALIGNMENT, Mailbox
from octavo.executor.gpu.state import DeviceSlots
from octavo.kernels.metadata import AttentionMetadata

_WORD = 8


class _Field(IntEnum):
    """Arrays of a decode batch, one after the other: int64, but the last one, which is int32."""

    TOKEN = 0
    POSITION = 1
    END = 2
    OWNER = 3  #: row of the slots' tensors
    SLOT = 4  #: the same, or -1
    INDEX = 5  #: of the noise
    PLACE = 6  #: of the token's block in the flattened tables of a group
    OFFSET = 7  #: of the token in its block
    CONTEXT = 8


@dataclass(frozen=True, slots=True)
class FlatBatch:
    """What the decoder computes, ``T`` tokens of ``N`` sequences, on the device."""

    token_ids: torch.Tensor  #: int64 [T]
    meta: tuple[AttentionMetadata, ...]  #: one for each layer group


@dataclass(frozen=True, slots=True)
class DecodeRows:
    """What is drawn in a batch of one token a sequence: int64 [B] each, on the device."""

    owners: torch.Tensor  #: rows of the slots' tensors
    slots: torch.Tensor  #: the same, but -1 for rows that fill up
    positions: torch.Tensor  #: of the tokens that are computed
    ends: torch.Tensor  #: of those to be drawn
    indexes: torch.Tensor  #: noise indexes


class StepInputs:
    """Makes inputs.

    Args:
        accelerator: the device.
        slots: what stays there.
        block_size: tokens a block holds.
        most_rows: the largest decode batch.
        max_tokens: the most tokens of any step.
        max_model_len: the longest context.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        slots: DeviceSlots,
        block_size: int,
        most_rows: int,
        max_tokens: int,
        max_model_len: int,
    ) -> None:
        self._slots = slots
        self._block_size = block_size
        self._most_rows = most_rows
        self._max_model_len = max_model_len
        self._field = -(-most_rows * _WORD // ALIGNMENT) * ALIGNMENT  # bytes from one array to the next
        self._num_changes = most_rows * slots.num_groups  # in the steady state a row gets a block a group at the most
        changes = self._num_changes * (_WORD + 4) + 2 * ALIGNMENT
        # Captured graphs read where it lies, so it never grows; the other one may.
        self._decode_box = Mailbox(accelerator, len(_Field) * self._field + changes)
        self._mixed_box = Mailbox(accelerator, 6 * max_tokens * _WORD + 16 * most_rows * _WORD + changes)
        self._moves_box = Mailbox(accelerator, 2 * _WORD * most_rows)
        self._one_each = torch.arange(most_rows + 1, dtype=torch.int32, device=accelerator.device)

    # -- one token a sequence ------------------------------------------------------------------------------------

    def fits(self, columns: ChunkColumns) -> bool:
        """Whether :meth:`send_decode` takes a step: some bring more blocks than it has room for."""
        return len(columns.chunks) <= self._most_rows and len(columns.places) <= self._num_changes

    def send_decode(self, columns: ChunkColumns, size: int) -> None:
        """Send a pure decode step, filled up to ``size`` rows, and set what it changes in the tables."""
        box, slots, number = self._decode_box, self._slots, len(columns.chunks)
        box.begin()
        logical, offset = np.divmod(columns.starts, self._block_size)
        place = columns.slots * slots.width + logical
        indexes = np.fromiter(chain.from_iterable(columns.draws), np.int64, count=number)
        filler = slots.filler
        for field, values, fill in (
            (_Field.TOKEN, columns.token_ids, 0),
            (_Field.POSITION, columns.starts, 0),
            (_Field.END, columns.ends, 1),
            (_Field.OWNER, columns.slots, filler),
            (_Field.SLOT, columns.slots, -1),
            (_Field.INDEX, indexes, 0),
            (_Field.PLACE, place, filler * slots.width),
            (_Field.OFFSET, offset, 0),
            (_Field.CONTEXT, columns.ends.astype(np.int32), 1),
        ):
            box.skip_to(field * self._field)
            box.put(values if number == size else _filled(values, size, fill))
        box.skip_to(len(_Field) * self._field)
        self._send(box, columns)

    def decode_rows(self, size: int) -> DecodeRows:
        """The first ``size`` rows of the step that was sent last."""
        fields = (_Field.OWNER, _Field.SLOT, _Field.POSITION, _Field.END, _Field.INDEX)
        return DecodeRows(*(self._taken(field, size) for field in fields))

    def decode_batch(self, size: int) -> FlatBatch:
        """The step that was sent last, as ``size`` rows. Every operation is one of the device, on memory that stays
        where it is: this may be captured."""
        owners = self._taken(_Field.OWNER, size)
        tokens = _Tokens(
            ids=self._taken(_Field.TOKEN, size),
            positions=self._taken(_Field.POSITION, size),
            owners=owners,
            places=self._taken(_Field.PLACE, size),
            offsets=self._taken(_Field.OFFSET, size),
            has_pending=True,
        )
        context = self._taken(_Field.CONTEXT, size, torch.int32)
        start = self._one_each[: size + 1]
        return self._batch(tokens, _Sequences(owners, start, context, 1, self._max_model_len), self._slots.width)

    def _taken(self, field: _Field, size: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
        return self._decode_box.take(field * self._field, size, dtype)

    # -- any step ------------------------------------------------------------------------------------------------

    def send_mixed(
        self, columns: ChunkColumns, more: Sequence[NDArray[Any]] = ()
    ) -> tuple[FlatBatch, list[torch.Tensor]]:
        """Send any step, set what it changes in the tables, and make its batch.

        Args:
            columns: the step.
            more: further arrays that the step needs, int64 or int32.

        Returns:
            the batch, and ``more`` on the device.
        """
        box, slots, total = self._mixed_box, self._slots, columns.total
        owner = np.repeat(columns.slots, columns.counts)
        positions = np.arange(total) + np.repeat(columns.starts - columns.query_start[:-1], columns.counts)
        logical, offset = np.divmod(positions, self._block_size)
        arrays: list[NDArray[Any]] = [
            columns.token_ids,
            positions,
            owner,
            owner * slots.width + logical,
            offset,
            columns.slots,
            columns.query_start,
            columns.ends.astype(np.int32),
            *more,
        ]
        needed = sum(array.nbytes + ALIGNMENT for array in (*arrays, columns.places, columns.blocks))
        box.begin(needed)
        starts = [box.put(array) for array in arrays]
        self._send(box, columns)
        on_device = [
            box.take(start, len(array), torch.int64 if array.itemsize == _WORD else torch.int32)
            for start, array in zip(starts, arrays, strict=True)
        ]
        ids, at, owners, places, offsets, rows, start, context = on_device[:8]
        most, longest = int(columns.counts.max()), int(columns.ends.max())
        tokens = _Tokens(ids, at, owners, places, offsets, columns.has_pending)
        sequences = _Sequences(rows, start, context, most, longest)
        return self._batch(tokens, sequences, -(-longest // self._block_size)), on_device[8:]

    def send_moves(self, sources: NDArray[np.int64], targets: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        """Send block ids, int64 [C] each."""
        box = self._moves_box
        box.begin(sources.nbytes + targets.nbytes + 2 * ALIGNMENT)
        first, second = box.put(sources), box.put(targets)
        box.send()
        return box.take(first, len(sources), torch.int64), box.take(second, len(targets), torch.int64)

    def _send(self, box: Mailbox, columns: ChunkColumns) -> None:
        count = len(columns.places)
        if not count:
            box.send()
            return
        places, blocks = box.put(columns.places), box.put(columns.blocks)
        box.send()
        tables = self._slots.tables.view(-1)
        tables.index_copy_(0, box.take(places, count, torch.int64), box.take(blocks, count, torch.int32))

    def _batch(self, tokens: _Tokens, sequences: _Sequences, width: int) -> FlatBatch:
        """The device's part: three operations, and two more for pending tokens, however many groups there are.

        Args:
            tokens: the rows.
            sequences: whose they are.
            width: blocks of the longest context.
        """
        tables, ids = self._slots.tables, tokens.ids
        if tokens.has_pending:
            ids = torch.where(ids < 0, self._slots.last_token.index_select(0, tokens.owners), ids)
        rows = tables[:, :, :width].index_select(1, sequences.slots)
        blocks = tables.view(len(tables), -1).index_select(1, tokens.places)
        where = torch.add(tokens.offsets, blocks, alpha=self._block_size)
        meta = tuple(
            AttentionMetadata(
                query_start=sequences.query_start,
                context_len=sequences.context,
                block_tables=own,
                positions=tokens.positions,
                slots=slots,
                max_query=sequences.max_query,
                max_context=sequences.max_context,
            )
            for own, slots in zip(rows.unbind(), where.unbind(), strict=True)
        )
        return FlatBatch(ids, meta)


@dataclass(frozen=True, slots=True)
class _Tokens:
    """``T`` tokens as they came to the device, int64 [T] each."""

    ids: torch.Tensor  # PENDING stands for the owner's last sample
    positions: torch.Tensor
    owners: torch.Tensor  # rows of the slots' tensors
    places: torch.Tensor  # where in a group's flattened tables the token's block stands
    offsets: torch.Tensor  # the token's place in its block
    has_pending: bool  # whether there may be such tokens


@dataclass(frozen=True, slots=True)
class _Sequences:
    """``N`` sequences."""

    slots: torch.Tensor  # int64 [N]
    query_start: torch.Tensor  # int32 [N + 1]
    context: torch.Tensor  # int32 [N]
    max_query: int  # the most tokens of one sequence
    max_context: int


def _filled(values: NDArray[Any], size: int, fill: int) -> NDArray[Any]:
    filled = np.full(size, fill, values.dtype)
    filled[: len(values)] = values
    return filled
