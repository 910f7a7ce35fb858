"""What a kernel benchmark is made of: one shape, its floor, and everyone who can do it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from gpu.timing import Clock, Timing, Work

Inputs = dict[str, Any]
Contender = Callable[[Inputs], object]


@dataclass(frozen=True, slots=True)
class Case:
    """One kernel at one shape."""

    kernel: str
    shape: str
    num_bytes: int  #: the least that must move: each input read once, each output written once
    inputs: Callable[[], Inputs]  #: a fresh set of random ones
    contenders: dict[str, Contender]  #: Octavo's is called "octavo"
    flops: int = 0  #: where arithmetic, not memory, is the floor
    bound: Literal["memory", "arithmetic"] = "memory"


@dataclass(frozen=True, slots=True)
class Measured:
    """What came of a case."""

    kernel: str
    shape: str
    num_bytes: int
    flops: int
    bound: str
    seconds: dict[str, Timing]
    missing: dict[str, str] = field(default_factory=dict)  #: who could not run, and why


def measure(case: Case, clock: Clock) -> Measured:
    """Everyone in turn, on the same sets of inputs."""
    sets = [case.inputs() for _ in range(clock.sets(case.num_bytes))]
    seconds, missing = {}, {}
    for name, contender in case.contenders.items():
        works: list[Work] = [partial(contender, each) for each in sets]
        try:
            seconds[name] = clock.time(works)
        except Exception as error:  # a peer that lacks this shape must not end the run
            if name == "octavo":
                raise
            missing[name] = f"{type(error).__name__}: {error}"[:200]
    return Measured(case.kernel, case.shape, case.num_bytes, case.flops, case.bound, seconds, missing)


def measure_all(cases: Iterator[Case], clock: Clock, device: torch.device) -> Iterator[Measured]:
    """One after another; each case's memory is given back before the next is built."""
    for case in cases:
        yield measure(case, clock)
        if device.type == "cuda":
            torch.cuda.empty_cache()
