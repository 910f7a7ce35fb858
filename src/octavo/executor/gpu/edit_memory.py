"""What a device remembers of sequences whose logits are changed before a draw.

The meanings and their order are those of :mod:`octavo.executor.edits`: ``allowed_token_ids``, ``logit_bias``,
``bad_words``, ``min_tokens``, the repetition penalty, the frequency and presence penalties. On the host they follow
from a sequence's tokens; here the tokens are told by :meth:`EditMemory.observe`, where the device has them, so that the
host need not have seen the last sample when the next step is planned. What is fixed when a slot is taken (allowed ids,
biases, words of one token) is one row of biases; what is counted is one row of a tally; what depends on the last few
tokens (longer bad words) or on the length (``min_tokens``) is looked up for each draw.

Memory: 4 bytes for each token of the vocabulary and each sequence resident that is biased or masked, and as many for
one with penalties, taken when the first such sequence comes.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from octavo.executor.edits import LogitEdits
from octavo.executor.gpu.row_pool import RowPool
from octavo.executor.gpu.staging import stage
from octavo.plan import SlotInit

NOBODY = -1
"""Stands for a token that nobody says, and for the row of a slot that is not edited."""


class EditMemory:
    """Rows of biases, tallies and bad words, one for each slot that is edited.

    Args:
        kernels: a backend with ``edit_logits``.
        num_slots: sequences resident at once.
        vocab_size: width of the logits.
        device: where the logits are.
    """

    def __init__(self, kernels: ModuleType, num_slots: int, vocab_size: int, device: torch.device) -> None:
        self._kernels = kernels
        self._vocab_size = vocab_size
        self._device = device
        self._pool = RowPool()
        self._row_of: dict[int, int] = {}  # slot -> row
        self._told = np.full(num_slots, NOBODY)  # what the device believes of each slot
        self._rows = self._ids(num_slots)  # and where: int64 [num_slots]
        self._bias: torch.Tensor | None = None  # float32 [E, V]
        self._tally: torch.Tensor | None = None  # int32 [E, V]: see edit_logits
        self._penalties = torch.zeros(0, 3, device=device)
        self._known = self._ids(0)  # positions below it are in the tally
        self._least = self._ids(0)  # the first position at which a stop id may stand
        self._stop_ids = self._ids(0, 0)
        self._prefixes = self._ids(0, 0, 0)  # of longer bad words, the last token first
        self._lasts = self._ids(0, 0)  # the token that completes each
        self._recent = self._ids(1, 1)  # the token at position p stands at p modulo the width; the last row is nobody's

    def take(self, init: SlotInit) -> bool:
        """A sequence moves into a slot; returns whether its logits are edited."""
        self.release(init.slot)
        edits = LogitEdits.of(init, self._vocab_size)
        row = NOBODY
        if edits is not None:
            row = self._row_of[init.slot] = self._pool.take()
            self._reserve(edits)
            self._write(row, edits, init)
        if row != self._told[init.slot]:
            self._told[init.slot] = row
            self._rows[init.slot] = row
        return edits is not None

    def release(self, slot: int) -> None:
        """Nobody lives there any more. (What a step in flight still does to the row, its next owner overwrites.)"""
        row = self._row_of.pop(slot, None)
        if row is not None:
            self._pool.give_back(row)

    def observe(self, tokens: torch.Tensor, slots: torch.Tensor, positions: torch.Tensor) -> None:
        """Sequences go on: what was known when a slot was taken is passed over, each later position is told once.

        Args:
            tokens: int64 [T], each in the vocabulary.
            slots: int64 [T], negative ones are padding.
            positions: int64 [T].
        """
        rows = self._rows_of(slots)
        at = rows.clamp(min=0)
        if not len(self._known):
            return
        fresh = (rows >= 0) & (positions >= self._known[at])
        if self._tally is not None:
            # Who has nothing to add adds 0 somewhere: no shape depends on the data, so the host need not know it.
            place = at * self._vocab_size + tokens
            flat = self._tally.view(-1)
            flat.index_add_(0, place, torch.where(fresh, 2, 0).int())
            counts = flat[place]
            flat.index_copy_(0, place, counts | (counts > 1).int())
        width = self._recent.shape[1]
        place = torch.where(fresh, at, self._recent.shape[0] - 1) * width + positions % width
        self._recent.view(-1).index_copy_(0, place, tokens)
        # So that a step which is done again, for want of memory the first time, tells nothing twice.
        self._known.scatter_reduce_(0, at, torch.where(fresh, positions + 1, 0), "amax")

    def edit(self, logits: torch.Tensor, slots: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """The logits to draw from: float32 [R, V], new memory.

        Args:
            logits: floating [R, V].
            slots: int64 [R], negative ones are padding.
            positions: int64 [R], of the token that each row is for; all before it has been observed.
        """
        rows = self._rows_of(slots)
        out = torch.empty(logits.shape, dtype=torch.float32, device=logits.device)
        self._kernels.edit_logits(logits, rows, self._bias, self._tally, self._penalties, out)
        if not len(self._known):
            return out
        at = rows.clamp(min=0)
        early = (rows >= 0) & (positions < self._least[at])
        tokens, banned = self._stop_ids[at], early[:, None].expand(-1, self._stop_ids.shape[1])
        if self._lasts.shape[1]:
            back = positions[:, None] - 1 - torch.arange(self._prefixes.shape[2], device=self._device)
            width = self._recent.shape[1]
            past = self._recent.view(-1)[at[:, None] * width + back % width]
            prefixes = self._prefixes[at]
            said = ((prefixes == past[:, None]) | (prefixes == NOBODY)).all(-1) & (rows >= 0)[:, None]
            tokens, banned = torch.cat((tokens, self._lasts[at]), 1), torch.cat((banned, said), 1)
        # What is not banned gets 0 added: see observe.
        return out.scatter_add_(1, tokens.clamp(min=0), torch.where(banned & (tokens >= 0), -torch.inf, 0.0))

    def _rows_of(self, slots: torch.Tensor) -> torch.Tensor:
        return torch.where(slots >= 0, self._rows[slots.clamp(min=0)], NOBODY)

    def _ids(self, *shape: int) -> torch.Tensor:
        return torch.full(shape, NOBODY, dtype=torch.int64, device=self._device)

    def _reserve(self, edits: LogitEdits) -> None:
        """Room for every row that was given out, and for all that this one needs."""
        rows = _power_of_two(self._pool.size)
        vocab = self._vocab_size
        if _has_bias(edits) or self._bias is not None:
            self._bias = _grown(self._bias, (rows, vocab), 0.0, torch.float32, self._device)
        if edits.penalties is not None or self._tally is not None:
            self._tally = _grown(self._tally, (rows, vocab), 0, torch.int32, self._device)
        self._penalties = _grown(self._penalties, (rows, 3), 0.0, torch.float32, self._device)
        self._known = self._widened(self._known, rows)
        self._least = self._widened(self._least, rows)
        self._stop_ids = self._widened(self._stop_ids, rows, _power_of_two(len(edits.stop_ids)))
        phrases = _power_of_two(len(edits.phrases))
        self._lasts = self._widened(self._lasts, rows, phrases)
        self._prefixes = self._widened(self._prefixes, rows, phrases, _power_of_two(edits.longest))
        width = max(1, self._prefixes.shape[2])
        # The old width divides the new one, so that what is repeated stands where it is looked for.
        self._recent = self._widened(self._recent.repeat(1, max(1, width // self._recent.shape[1])), rows + 1)

    def _widened(self, old: torch.Tensor, *shape: int) -> torch.Tensor:
        size = (*shape, *old.shape[len(shape) :])
        return _grown(old, size, NOBODY, torch.int64, self._device)

    def _write(self, row: int, edits: LogitEdits, init: SlotInit) -> None:
        """Everything about a row, whoever had it before."""
        length = len(init.tokens)
        if self._bias is not None:
            bias = np.zeros(self._vocab_size, np.float32)
            if edits.allowed is not None:
                bias[:] = -np.inf
                bias[edits.allowed] = 0.0
            np.add.at(bias, edits.bias[0], edits.bias[1])
            bias[edits.words] = -np.inf
            self._bias[row] = self._stage(bias)
        if self._tally is not None:
            ids, counts = edits.history.tally(length)
            tally = np.zeros(self._vocab_size, np.int32)
            known = ids < self._vocab_size
            tally[ids[known]] = 1 + 2 * counts[known].astype(np.int32)
            self._tally[row] = self._stage(tally)
        self._penalties[row] = self._stage(np.array(edits.penalties or (1.0, 0.0, 0.0), np.float32))
        phrases = [(prefix, last) for prefix, last in edits.phrases if self._can_be_said(prefix)]
        stop_ids = np.full(self._stop_ids.shape[1], NOBODY)
        stop_ids[: len(edits.stop_ids)] = edits.stop_ids
        prefixes = np.full(self._prefixes.shape[1:], NOBODY)
        lasts = np.full(self._lasts.shape[1], NOBODY)
        for place, (prefix, last) in enumerate(phrases):
            prefixes[place, : len(prefix)] = prefix[::-1]
            lasts[place] = last
        recent = np.full(self._recent.shape[1], NOBODY)
        for position in range(max(0, length - len(recent)), length):
            recent[position % len(recent)] = init.tokens[position]
        self._known[row], self._least[row] = length, init.num_prompt + edits.min_tokens
        self._stop_ids[row] = self._stage(stop_ids)
        self._prefixes[row], self._lasts[row] = self._stage(prefixes), self._stage(lasts)
        self._recent[row] = self._stage(recent)

    def _can_be_said(self, prefix: tuple[int, ...]) -> bool:
        return all(0 <= token < self._vocab_size for token in prefix)

    def _stage(self, array: NDArray[Any]) -> torch.Tensor:
        return stage(array, self._device)


def _has_bias(edits: LogitEdits) -> bool:
    return edits.allowed is not None or len(edits.bias[0]) > 0 or len(edits.words) > 0


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length() if number > 0 else 0


def _grown(
    old: torch.Tensor | None, shape: tuple[int, ...], fill: float, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """``old`` in the first corner of a tensor at least as large as ``shape`` and as itself; itself if it is."""
    if old is None:
        return torch.full(shape, fill, dtype=dtype, device=device)
    size = tuple(map(max, shape, old.shape))
    if size == tuple(old.shape):
        return old
    grown = torch.full(size, fill, dtype=dtype, device=device)
    grown[tuple(map(slice, old.shape))] = old
    return grown
