"""What is counted while a trace is replayed, each moment weighed with how long it lasted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from octavo.plan import StepPlan


class Usage(NamedTuple):
    """The memory during one step, in token slots."""

    capacity: int  #: all there is
    held: int  #: given to requests
    filled: int  #: of those, holding a token by the end of the step
    resident: int  #: requests that hold any


@dataclass(slots=True)
class Meter:
    """Totals over steps; seconds are the machine's."""

    num_steps: int = 0
    num_computed_tokens: int = 0  #: recomputed ones included
    num_copies: int = 0
    num_evicted: int = 0
    num_preempted: int = 0
    num_swapped_out: int = 0  #: blocks
    num_swapped_in: int = 0
    peak_held: float = 0.0  #: of all memory
    peak_resident: int = 0  #: requests
    busy: float = 0.0  #: seconds in which a step ran
    capacity_time: float = 0.0  #: token slots x seconds, and so below
    held_time: float = 0.0
    filled_time: float = 0.0
    resident_time: float = 0.0

    def count(self, plan: StepPlan, seconds: float, usage: Usage) -> None:
        """Add a step."""
        if plan.chunks:
            self.num_steps += 1
            self.num_computed_tokens += plan.num_tokens
        self.num_copies += len(plan.copies)
        self.num_evicted += len(plan.evicted)
        self.num_preempted += len(plan.preempted)
        self.num_swapped_out += len(plan.swap_out)
        self.num_swapped_in += len(plan.swap_in)
        self.peak_held = max(self.peak_held, usage.held / usage.capacity)
        self.peak_resident = max(self.peak_resident, usage.resident)
        self.busy += seconds
        self.capacity_time += seconds * usage.capacity
        self.held_time += seconds * usage.held
        self.filled_time += seconds * usage.filled
        self.resident_time += seconds * usage.resident
