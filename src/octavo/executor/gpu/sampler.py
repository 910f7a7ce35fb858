"""From logits to tokens on the device: nothing here waits for it, and nothing comes back to the host.

The order of operations and their meanings are those of :mod:`octavo.executor.sampler`. What differs is where things
are: a slot's parameters are written to columns on the device when the slot is taken, rows are named by tensors that are
there already, and what was drawn, its log-probabilities and what failed stay there until the executor fetches them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from octavo.executor.gpu.edit_memory import EditMemory
from octavo.executor.gpu.staging import stage
from octavo.executor.sampler import NO_TOKEN_LEFT, NOT_FINITE
from octavo.kernels.drawn import DrawFailure, Drawn
from octavo.plan import SamplingSpec, SlotInit

FAILURES = {DrawFailure.NOT_FINITE: NOT_FINITE, DrawFailure.NO_TOKEN_LEFT: NO_TOKEN_LEFT}
"""What ``ChunkResult.error`` says of each."""

PLAIN = SamplingSpec()


class DrawRows(NamedTuple):
    """``D`` draws to be made, all on the device, int64."""

    slots: torch.Tensor  #: [D], whose parameters count; negative: padding, whose draw is unspecified
    indexes: torch.Tensor  #: [D], noise indexes
    positions: torch.Tensor  #: [D], of the token to be drawn
    sources: torch.Tensor | None = None  #: [D], the row of the logits that each draw is made from; None: draw i, row i


@dataclass(frozen=True, slots=True)
class Needs:
    """What a step's rows want beside a draw; known on the host when the step is planned."""

    edited: bool = False  #: some row's logits are changed: :meth:`DeviceSampler.observe` must have been told its tokens
    reported: tuple[int, ...] = ()  #: rows of the logits whose alternatives are reported
    alternatives: int = 0  #: how many, the most of any row

    @property
    def is_plain(self) -> bool:
        """Whether one :meth:`DeviceSampler.draw` is all (log-probabilities of drawn tokens it gives anyway)."""
        return not self.edited and not self.alternatives


class DeviceDraws(NamedTuple):
    """What came of a step's rows, on the device."""

    tokens: torch.Tensor  #: int64 [D]; in the vocabulary even where the draw failed
    logprobs: torch.Tensor  #: float32 [D], under the model's own distribution
    failures: torch.Tensor  #: int32 [D], each a DrawFailure
    top_ids: torch.Tensor | None = None  #: int64 [len(needs.reported), needs.alternatives], the likeliest first
    top_logprobs: torch.Tensor | None = None  #: float32, the same shape


class Searched(NamedTuple):
    """What beam search gets of ``R`` rows, on the device."""

    ids: torch.Tensor  #: int64 [R, top], the best first
    scores: torch.Tensor  #: float32 [R, top]; -inf where a token is excluded
    failures: torch.Tensor  #: int32 [R], each a DrawFailure


class DeviceSampler:
    """Draws for the rows of a step.

    Parameters of a slot cross to the device once, when it is taken. A step whose rows are all plain
    (:attr:`Needs.is_plain`; temperature, top-k, top-p and min-p are) is one :meth:`draw`, which allocates nothing that
    outlives it if it is given ``out``, and may be captured in a graph.

    Drafts are verified with as many rows, each with its own position, and compared by the executor. Where a sequence
    looks back at its tokens (:meth:`looks_back`), what follows a draft that comes out wrong must not have been
    observed: there only the first token may be observed, and only the first row's draw counts.

    Args:
        kernels: a backend with ``draw``, ``edit_logits``, ``log_softmax_gather`` and ``top_logprobs``.
        num_slots: sequences resident at once.
        vocab_size: width of the logits.
        device: where the logits are.
    """

    def __init__(self, kernels: ModuleType, num_slots: int, vocab_size: int, device: torch.device) -> None:
        self._kernels = kernels
        self._vocab_size = vocab_size
        self._device = device
        self._temperature = torch.zeros(num_slots, device=device)
        self._top_k = torch.zeros(num_slots, dtype=torch.int32, device=device)
        self._top_p = torch.ones(num_slots, device=device)
        self._min_p = torch.zeros(num_slots, device=device)
        self._seeds = torch.zeros(num_slots, dtype=torch.int64, device=device)
        self._edits = EditMemory(kernels, num_slots, vocab_size, device)
        self._edited = np.zeros(num_slots, np.bool_)
        self._looks_back = np.zeros(num_slots, np.bool_)
        self._alternatives = np.zeros(num_slots, np.int64)
        self._fresh: dict[int, SlotInit] = {}  # taken since the device was told last

    def take(self, init: SlotInit) -> None:
        """A sequence moves in; nothing of the one before it remains."""
        slot, spec = init.slot, init.sampling
        self._fresh[slot] = init
        self._edited[slot] = self._edits.take(init)
        penalties = (spec.repetition_penalty, spec.presence_penalty, spec.frequency_penalty)
        self._looks_back[slot] = penalties != (1.0, 0.0, 0.0) or any(len(word) > 1 for word in spec.bad_words)
        self._alternatives[slot] = spec.logprobs or 0

    def release(self, slot: int) -> None:
        """Nobody lives here any more."""
        self._fresh.pop(slot, None)
        self._edits.release(slot)
        self._edited[slot] = self._looks_back[slot] = False
        self._alternatives[slot] = 0

    def flush(self) -> None:
        """Tell the device of the slots taken: before a graph is replayed. The other methods do so themselves."""
        if not self._fresh:
            return
        slots = stage(np.fromiter(self._fresh, np.int64), self._device)
        specs = [init.sampling for init in self._fresh.values()]
        floats = np.array([(spec.temperature, spec.top_p, spec.min_p) for spec in specs], np.float32)
        words = np.array(
            [((init.seed + 2**63) % 2**64 - 2**63, max(init.sampling.top_k, 0)) for init in self._fresh.values()],
            np.int64,
        )
        for column, values in zip(
            (self._temperature, self._top_p, self._min_p), stage(floats.T, self._device), strict=True
        ):
            column.index_copy_(0, slots, values)
        seeds, top_k = stage(words.T, self._device)
        self._seeds.index_copy_(0, slots, seeds)
        self._top_k.index_copy_(0, slots, top_k.int())
        self._fresh.clear()

    def looks_back(self, slot: int) -> bool:
        """Whether what is drawn depends on the tokens before (penalties, bad words of several tokens)."""
        return bool(self._looks_back[slot])

    def needs(self, slots: Sequence[int] | NDArray[np.int64]) -> Needs:
        """What rows want whose logits belong to these slots, in this order."""
        owners = np.asarray(slots, np.int64)
        counts = self._alternatives[owners]
        reported = tuple(np.flatnonzero(counts).tolist())
        most = min(int(counts.max(initial=0)), self._vocab_size)
        return Needs(bool(self._edited[owners].any()), reported, most)

    def observe(self, tokens: torch.Tensor, slots: torch.Tensor, positions: torch.Tensor) -> None:
        """What the step's flat batch computes, before anything is drawn from it; needed where :class:`Needs` says
        ``edited``, and harmless elsewhere.

        Args:
            tokens: int64 [T], as they are computed: none is pending any more.
            slots: int64 [T], the slot of each token's sequence; negative: padding, and rejected or unverified drafts.
            positions: int64 [T].
        """
        self._edits.observe(tokens, slots, positions)

    def draw(self, logits: torch.Tensor, rows: DrawRows, out: Drawn | None = None, masked: bool = False) -> Drawn:
        """Draw from the logits as they are.

        Args:
            logits: floating [R, V], rows contiguous.
            rows: what to draw.
            out: where the results go; None: they get new memory.
            masked: -inf excludes a token; otherwise it fails its row.
        """
        self.flush()
        columns = (self._temperature, self._top_k, self._top_p, self._min_p, self._seeds)
        return self._kernels.draw(logits, rows.sources, rows.slots, rows.indexes, rows.positions, *columns, masked, out)

    def run(self, logits: torch.Tensor, rows: DrawRows, needs: Needs) -> DeviceDraws:
        """Whatever the rows want.

        Args:
            logits: floating [R, V], rows contiguous; not changed.
            rows: what to draw.
            needs: what :meth:`needs` says of the logits' rows.
        """
        top_ids = top_logprobs = None
        if needs.alternatives:
            asked = logits
            if len(needs.reported) < len(logits):
                asked = logits[stage(np.array(needs.reported, np.int64), self._device)]
            top_ids, top_logprobs = self._kernels.top_logprobs(asked.float(), needs.alternatives)
        if not needs.edited:
            return DeviceDraws(*self.draw(logits, rows), top_ids, top_logprobs)
        owners, positions = self._owners(len(logits), rows)
        drawn = self.draw(self._edits.edit(logits, owners, positions), rows, masked=True)
        raw = logits if rows.sources is None else logits[rows.sources]
        logprobs = self._kernels.log_softmax_gather(raw.float(), drawn.tokens)
        failures = torch.where(raw.isfinite().all(1), drawn.failures, int(DrawFailure.NOT_FINITE))
        return DeviceDraws(drawn.tokens, logprobs, failures, top_ids, top_logprobs)

    def search(self, logits: torch.Tensor, slots: torch.Tensor, positions: torch.Tensor, top: int) -> Searched:
        """For beam search: log-probabilities, edited but not normalised again, and the best ``top`` of them.

        Args:
            logits: floating [R, V]; not changed.
            slots: int64 [R].
            positions: int64 [R], of the token that each row is for.
            top: how many, at most the vocabulary.
        """
        scores = self._edits.edit(torch.log_softmax(logits.float(), 1), slots, positions)
        values, ids = scores.topk(top)
        failures = torch.where(values[:, 0] == -torch.inf, int(DrawFailure.NO_TOKEN_LEFT), int(DrawFailure.NONE))
        failures = torch.where(logits.isfinite().all(1), failures, int(DrawFailure.NOT_FINITE))
        return Searched(ids, values, failures.int())

    def _owners(self, num_rows: int, rows: DrawRows) -> tuple[torch.Tensor, torch.Tensor]:
        """The slot and position of each row of the logits, from those of the draws made from it."""
        if rows.sources is None:
            return rows.slots, rows.positions
        owners = torch.full((num_rows,), -1, dtype=torch.int64, device=self._device)
        positions = torch.zeros_like(owners)
        return owners.index_copy_(0, rows.sources, rows.slots), positions.index_copy_(0, rows.sources, rows.positions)
