"""What an engine has done so far, counted as it goes."""

from __future__ import annotations

from dataclasses import dataclass

from octavo.memory import MemoryManager
from octavo.plan import StepPlan, StepResult, Want
from octavo.request import Sequence


@dataclass(slots=True)
class EngineStats:
    """Totals since the engine began (or since :meth:`~octavo.engine.LLMEngine.reset_stats`)."""

    num_steps: int = 0  #: steps that computed something
    num_computed_tokens: int = 0  #: tokens put through the model, recomputed ones included
    num_generated_tokens: int = 0  #: drawn, or (a beam search) looked at
    num_drafted_tokens: int = 0  #: guessed and verified (``speculative``)
    num_accepted_tokens: int = 0  #: those of them that equalled the token drawn
    num_cached_tokens: int = 0  #: prompt tokens found in the prefix tree
    num_shared_blocks: int = 0  #: blocks taken over from the prefix tree, a sibling or a fork's source
    num_out_of_blocks: int = 0  #: requests that failed for lack of memory (under ``victims="none"`` alone)
    num_preemptions: int = 0
    num_swapped_out: int = 0  #: blocks moved to host memory
    num_swapped_in: int = 0  #: blocks moved back
    num_demoted: int = 0  #: those of them that were evicted from the prefix cache on the device
    num_promoted: int = 0  #: and those that came back to it
    num_copies: int = 0  #: copy-on-write
    num_evicted: int = 0  #: cached blocks dropped to make room
    peak_blocks: int = 0  #: the most blocks held at once
    executor_seconds: float = 0.0  #: as the executor measured it
    utilisation_sum: float = 0.0  #: over steps

    @property
    def kv_utilisation(self) -> float:
        """Computed tokens over token slots of held blocks, averaged over steps."""
        return self.utilisation_sum / self.num_steps if self.num_steps else 1.0

    def count(self, plan: StepPlan, result: StepResult) -> None:
        """Add a step."""
        self.num_swapped_out += len(plan.swap_out)
        self.num_swapped_in += len(plan.swap_in)
        if not plan.chunks:
            return
        self.num_steps += 1
        self.num_computed_tokens += plan.num_tokens
        self.num_generated_tokens += sum(
            len(chunk.draws) if chunk.want is Want.SAMPLE else chunk.want is Want.LOGPROBS for chunk in plan.chunks
        )
        for chunk, outcome in zip(plan.chunks, result.results, strict=True):
            if chunk.drafts and outcome.samples:
                accepted = len(outcome.samples) - 1
                self.num_drafted_tokens += chunk.drafts
                self.num_accepted_tokens += accepted
                self.num_generated_tokens += accepted
        self.num_copies += len(plan.copies)
        self.num_evicted += len(plan.evicted)
        self.executor_seconds += result.elapsed

    def sample_memory(self, memory: MemoryManager, sequences: list[Sequence]) -> None:
        """Add the moment's utilisation: what is held and not (yet) filled is the tail of each table, for full blocks
        alone are shared for long."""
        used = memory.pool.num_blocks - memory.num_free
        self.peak_blocks = max(self.peak_blocks, used)
        held = used * memory.block_size
        empty = sum(
            len(table.blocks) * memory.block_size - seq.num_computed for seq in sequences for table in seq.tables
        )
        self.utilisation_sum += max(0.0, 1.0 - empty / held) if held else 1.0
