"""The rows of the executor: what it remembers of each resident sequence between steps."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from octavo.errors import EngineError
from octavo.executor.edits import LogitEdits
from octavo.plan import SamplingSpec, SlotInit

_PLAIN = SamplingSpec()


class SlotTable:
    """Per-slot state as columns, so that a batch is built by indexing with its slots.

    Args:
        num_slots: sequences resident at once.
        num_groups: layer groups, each with a block table of its own.
        width: the most blocks that one sequence's table holds.
        vocab_size: width of the logits.
    """

    def __init__(self, num_slots: int, num_groups: int, width: int, vocab_size: int) -> None:
        self.num_slots = num_slots
        self.width = width
        self.vocab_size = vocab_size
        self.tables = tuple(np.zeros((num_slots, width), np.int32) for _ in range(num_groups))  #: block ids
        self.table_len = np.zeros((num_slots, num_groups), np.int32)  #: entries of each table that are valid
        self.seq_id = np.full(num_slots, -1, np.int64)  #: -1: nobody
        self.last_token = np.full(num_slots, -1, np.int64)  #: the slot's own last sample; -1: none yet
        self.index = np.zeros(num_slots, np.int64)
        self.seed = np.zeros(num_slots, np.int64)  #: 64 bits, as a signed integer
        self.temperature = np.zeros(num_slots, np.float32)
        self.top_k = np.zeros(num_slots, np.int32)
        self.top_p = np.ones(num_slots, np.float32)
        self.min_p = np.zeros(num_slots, np.float32)
        self.logprobs = np.full(num_slots, -1, np.int64)  #: -1: none wanted
        self.edited = np.zeros(num_slots, np.bool_)  #: whether ``edits`` has an entry
        self.special = np.zeros(num_slots, np.bool_)  #: whether more than a draw from the logits is wanted
        self.edits: list[LogitEdits | None] = [None] * num_slots
        self.prompt: list[NDArray[np.int64] | None] = [None] * num_slots  #: kept where prompt_logprobs needs it
        self.spec: list[SamplingSpec] = [_PLAIN] * num_slots

    def take(self, init: SlotInit) -> None:
        """A sequence moves in; nothing of the one before it remains.

        Raises:
            EngineError: there is no such slot.
        """
        slot, spec = init.slot, init.sampling
        if not 0 <= slot < self.num_slots:
            raise EngineError(f"slot {slot} does not exist: the executor has {self.num_slots}")
        self.table_len[slot] = 0
        self.seq_id[slot] = init.seq_id
        self.last_token[slot] = -1
        self.index[slot] = init.index
        self.seed[slot] = (init.seed + 2**63) % 2**64 - 2**63
        self.temperature[slot] = spec.temperature
        self.top_k[slot] = max(spec.top_k, 0)
        self.top_p[slot] = spec.top_p
        self.min_p[slot] = spec.min_p
        self.logprobs[slot] = -1 if spec.logprobs is None else spec.logprobs
        self.spec[slot] = spec
        self.edits[slot] = LogitEdits.of(init, self.vocab_size)
        self.edited[slot] = self.edits[slot] is not None
        self.special[slot] = self.edited[slot] or spec.logprobs is not None
        wants_prompt = spec.prompt_logprobs is not None
        self.prompt[slot] = np.asarray(init.tokens[: init.num_prompt], np.int64) if wants_prompt else None

    def release(self, slot: int) -> None:
        """Nobody lives here any more."""
        self.seq_id[slot] = -1
        self.last_token[slot] = -1
        self.table_len[slot] = 0
        self.spec[slot] = _PLAIN
        self.edits[slot] = None
        self.edited[slot] = self.special[slot] = False
        self.prompt[slot] = None

    def extend(self, slot: int, group: int, keep: int, blocks: tuple[int, ...]) -> None:
        """Cut a table to ``keep`` entries, then append ``blocks``. Holes are kept as they come: kernels begin at the
        block in which the window begins.

        Raises:
            EngineError: the table has fewer than ``keep`` entries, or would grow past the served context.
        """
        end = keep + len(blocks)
        if keep > self.table_len[slot, group] or end > self.width:
            raise EngineError(
                f"sequence {self.seq_id[slot]}: a table of {self.table_len[slot, group]} blocks cannot keep {keep} and "
                f"take {len(blocks)} more (the longest has {self.width})"
            )
        self.tables[group][slot, keep:end] = blocks
        self.table_len[slot, group] = end
