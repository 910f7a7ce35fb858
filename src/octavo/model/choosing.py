"""Which kind of product serves a weight's shape: found by a short measurement, remembered, or told."""

from __future__ import annotations

import math
import time
from typing import Any

import torch

from octavo.model.choices import Choice, LinearChoices

MEASURED_ROWS = (1, 16, 256)
_MEASURE_SECONDS = 0.02  # for each kind and number of rows
_ROUNDS = 2  # every kind is measured so often, in turn, lest what else the machine did meanwhile decides for long
_MARGIN = 0.9  # of the other's time: a kind must be so much faster to be preferred over one named after it, lest the
# choice, and with it the last bits of a result, turn on the noise of a busy machine
_UNDISTURBED = (
    0.8  # share of its processors that a process must have had for what it measured to be remembered: threads
)
# that wait for one another spin, so without company it is nearly 1
_LARGEST_OUTPUT = 2**22  # elements; measuring lm_head at 256 rows would take a second for what is never run


class KindChooser:
    """Chooses among kinds of :class:`~octavo.model.linear.Linear`.

    Args:
        wanted: "auto" takes what was measured before, and measures what was not; "measure" measures everything anew;
            any other word is the kind to take for every shape that it serves.
        remembered: where measurements are kept [nowhere].
    """

    def __init__(self, wanted: str = "auto", remembered: LinearChoices | None = None) -> None:
        self.wanted = wanted
        self._remembered = remembered

    def candidates(self, kinds: list[Any]) -> list[Any]:
        """Those of ``kinds`` that may be taken: the wanted one alone, where it is among them."""
        return [kind for kind in kinds if kind.kind == self.wanted] or kinds

    def choose(self, kinds: list[Any], weight: torch.Tensor, bias: torch.Tensor | None) -> tuple[Any, str]:
        """One of ``kinds`` for weights ``[N, K]`` of this shape, and a line that says why."""
        shape = f"{weight.shape[0]}x{weight.shape[1]}" + ("" if bias is None else "+bias")
        left = self.candidates(kinds)
        if len(left) == 1:
            reason = "the only kind here" if len(kinds) == 1 else "as configured"
            return left[0], f"linear {shape}: {left[0].kind} ({reason})"
        rows = tuple(count for count in MEASURED_ROWS if count == 1 or count * weight.shape[0] <= _LARGEST_OUTPUT)
        names = {kind.kind: kind for kind in left}
        known = None
        if self._remembered is not None and self.wanted != "measure":
            known = self._remembered.find(shape, tuple(names), rows)
        if known is not None:
            return names[known.kind], f"linear {shape}: {known}"
        choice, share = _measured(left, rows, weight, bias)
        if self._remembered is not None and share >= _UNDISTURBED:
            self._remembered.keep(shape, choice)
        return names[choice.kind], f"linear {shape}: {choice}"


def _measured(
    kinds: list[Any], rows: tuple[int, ...], weight: torch.Tensor, bias: torch.Tensor | None
) -> tuple[Choice, float]:
    """The last kind, unless an earlier one's times over several batch sizes have a geometric mean that is clearly
    less; and which share of its threads' time this process really had meanwhile."""
    wall = cpu = 0.0
    inputs = [torch.randn(count, weight.shape[1]).to(weight.dtype) for count in rows]
    times = {kind.kind: tuple(math.inf for _ in rows) for kind in kinds}
    for kind in kinds * _ROUNDS:
        linear = kind(weight, bias)
        began, had = time.perf_counter(), time.process_time()
        times[kind.kind] = tuple(
            min(_seconds(linear, x), held) for x, held in zip(inputs, times[kind.kind], strict=True)
        )
        wall, cpu = wall + time.perf_counter() - began, cpu + time.process_time() - had
        del linear  # before the next one is made, for memory's sake
    best = kinds[-1].kind
    for kind in kinds[:-1]:
        if math.prod(times[kind.kind]) < math.prod(times[best]) * _MARGIN ** len(rows):
            best = kind.kind
    return Choice(best, rows, times), cpu / (wall * torch.get_num_threads())


def _seconds(linear: Any, x: torch.Tensor) -> float:
    """The least time of several runs, the first of which only warms up."""
    linear(x)
    best, spent, runs = math.inf, 0.0, 0
    while runs < 4 or (spent < _MEASURE_SECONDS and runs < 50):
        started = time.perf_counter()
        linear(x)
        seconds = time.perf_counter() - started
        best, spent, runs = min(best, seconds), spent + seconds, runs + 1
    return best
