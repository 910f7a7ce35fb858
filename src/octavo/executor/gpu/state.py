"""The rows of the GPU executor: what stays on the device between steps, and what the host keeps of it."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from octavo.errors import EngineError
from octavo.plan import SamplingSpec, SlotInit

_PLAIN = SamplingSpec()


class DeviceSlots:
    """A row on the device for each resident sequence: its block tables and its last sampled token.

    The host never reads them back. It keeps beside them what a plan is checked against, and what tells how a sequence
    is to be sampled. One row more than there are slots belongs to nobody: batches of a captured size are filled up with
    it. Its tables name a block that no sequence ever gets, so what such rows compute and write touches nobody.

    Args:
        num_slots: sequences resident at once.
        num_groups: layer groups, each with a block table of its own.
        width: the most blocks that one sequence's table holds.
        filler_block: the block of the row that belongs to nobody.
        device: where the rows are.
    """

    def __init__(
        self, num_slots: int, num_groups: int, width: int, filler_block: int, device: torch.device | str
    ) -> None:
        self.num_slots = num_slots
        self.num_groups = num_groups
        self.width = width
        rows = num_slots + 1
        self.tables = torch.full((num_groups, rows, width), filler_block, dtype=torch.int32, device=device)
        self.last_token = torch.zeros(rows, dtype=torch.int64, device=device)  #: the slot's own last sample
        self.seq_id = np.full(num_slots, -1, np.int64)  #: -1: nobody
        self.table_len = np.zeros((num_slots, num_groups), np.int32)  #: entries of each table that are valid
        self.sampled = np.zeros(num_slots, np.bool_)  #: whether ``last_token`` is a sample of this sequence
        self.index = np.zeros(num_slots, np.int64)  #: its own noise index
        self.reports = np.zeros(num_slots, np.bool_)  #: whether log-probabilities of what is drawn are wanted
        self.spec: list[SamplingSpec] = [_PLAIN] * num_slots
        self.prompt: list[NDArray[np.int64] | None] = [None] * num_slots  #: kept where prompt_logprobs needs it

    @property
    def filler(self) -> int:
        """The row that belongs to nobody."""
        return self.num_slots

    def take(self, init: SlotInit) -> None:
        """A sequence moves in; nothing of the one before it remains.

        Raises:
            EngineError: there is no such slot.
        """
        slot, spec = init.slot, init.sampling
        if not 0 <= slot < self.num_slots:
            raise EngineError(f"slot {slot} does not exist: the executor has {self.num_slots}")
        self.seq_id[slot] = init.seq_id
        self.table_len[slot] = 0
        self.sampled[slot] = False
        self.index[slot] = init.index
        self.reports[slot] = spec.logprobs is not None
        self.spec[slot] = spec
        wants_prompt = spec.prompt_logprobs is not None
        self.prompt[slot] = np.asarray(init.tokens[: init.num_prompt], np.int64) if wants_prompt else None

    def release(self, slot: int) -> None:
        """Nobody lives here any more."""
        self.seq_id[slot] = -1
        self.table_len[slot] = 0
        self.sampled[slot] = self.reports[slot] = False
        self.spec[slot] = _PLAIN
        self.prompt[slot] = None
