"""Adds guesses to the chunks of a step that decode."""

from __future__ import annotations

from octavo.config import SchedulerConfig
from octavo.memory import MemoryManager
from octavo.plan import PENDING, Chunk
from octavo.request import Sequence
from octavo.scheduler.drafting.acceptance import Acceptance
from octavo.scheduler.drafting.ngram_drafter import NgramDrafter
from octavo.scheduler.drafting.step_gain import StepCosts, StepGain


class Speculation:
    """Lengthens decode chunks by drafts: tokens that are guessed, and verified by the step itself.

    Drafts come last: they have what decodes and prefills leave of the budget, and of memory what nobody waits for.
    How many a sequence gets follows from how often its guesses came true and from what rows cost, so that text that
    does not repeat itself is left alone.

    Args:
        config: ``speculative_tokens``, ``ngram_min``, ``ngram_max`` and ``step_costs`` are read.
        memory: blocks for drafts come of it.
    """

    def __init__(self, config: SchedulerConfig, memory: MemoryManager) -> None:
        self._config = config
        self._memory = memory
        self._costs = StepCosts(config.step_costs)
        self._pool = Acceptance()
        self._drafters: dict[int, NgramDrafter] = {}  # by sequence id

    def extend(
        self, chunks: list[Chunk], planned: list[tuple[Sequence, int]], rows: int, spare: int, spare_blocks: int
    ) -> None:
        """Put drafts on ``chunks``, the step's decodes, in place, and move their sequences' cursors over them.

        Args:
            chunks: one token each.
            planned: each one's sequence.
            rows: tokens of the whole step so far.
            spare: tokens that may be added.
            spare_blocks: blocks that may be taken.
        """
        depth = self._config.depth
        gain = StepGain(self._costs, rows, len(chunks), lost=depth)
        if not gain.is_possible(min(self._config.speculative_tokens, spare)):
            return  # with so many rows, further ones are worth less than they cost whatever is guessed
        for i, (seq, _) in enumerate(planned):
            if spare <= 0:
                return
            most = min(self._config.speculative_tokens, spare, seq.limit - seq.num_total)
            if most <= 0 or not _may_draft(seq, chunks[i]):
                continue
            drafter = self._drafters.get(seq.id)
            if drafter is None:
                drafter = self._drafters[seq.id] = self._new_drafter()
            ahead = chunks[i].tokens[0] == PENDING  # its last token is a guess, too, which nobody has to verify
            guess = drafter.guess(seq.tokens, self._config.speculative_tokens + ahead)[ahead : most + ahead]
            if not guess:
                continue
            count = gain.choose(drafter.chances(len(guess) + ahead)[ahead:])
            free = self._memory.num_free
            count = self._room(seq, count, spare_blocks)
            spare_blocks -= free - self._memory.num_free
            if count > 0:
                chunks[i] = _lengthened(chunks[i], seq, tuple(guess[:count]))
                spare -= count

    def forget(self, seq: Sequence) -> None:
        """The sequence has ended."""
        self._drafters.pop(seq.id, None)

    def _new_drafter(self) -> NgramDrafter:
        return NgramDrafter(self._config.ngram_min, self._config.ngram_max, self._pool)

    def _room(self, seq: Sequence, count: int, spare_blocks: int) -> int:
        """How many of ``count`` drafts there is memory for, taking blocks for them if they are to be had."""
        upto = seq.num_scheduled + count
        if upto > seq.capacity:
            if self._memory.need(seq, upto) > spare_blocks:
                return seq.capacity - seq.num_scheduled
            self._memory.reserve(seq, upto)
        return count


def _may_draft(seq: Sequence, chunk: Chunk) -> bool:
    """Whether the sequence may get more than a token in one step. Not beams: their tokens are chosen by the host. And
    not where sequences are ranked by likelihood and ended by strings, which are looked for after the step: the ranking
    would know tokens beyond them."""
    params = seq.request.params
    if chunk.start < seq.num_prompt or params.beam_width > 1:
        return False
    return not (params.stop_strings and params.best_of is not None and params.best_of > params.n)


def _lengthened(chunk: Chunk, seq: Sequence, drafts: tuple[int, ...]) -> Chunk:
    blocks = chunk.blocks
    if any(table.sent < len(table.blocks) for table in seq.tables):
        blocks = tuple((*own, *table.blocks[table.sent :]) for own, table in zip(blocks, seq.tables, strict=True))
        for table in seq.tables:
            table.sent = len(table.blocks)
    seq.num_scheduled += len(drafts)
    return chunk._replace(count=1 + len(drafts), tokens=(*chunk.tokens, *drafts), blocks=blocks, drafts=len(drafts))
