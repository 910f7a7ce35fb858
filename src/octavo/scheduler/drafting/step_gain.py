"""How many guesses are worth their rows."""

from __future__ import annotations

from bisect import bisect_right

LEAST_GAIN = 1.02
"""A step's tokens per second must be expected to grow so much for its first guess: what is less is lost in noise."""

_HOPELESS = 0.01
"""Guesses less likely than this are not looked at."""


class StepCosts:
    """What a step takes by its number of rows, relative to a step of one row: linear between the numbers known, and
    beyond them.

    Args:
        costs: of steps of 1, 2, 4, 8, ... rows; two at least, the first 1.
    """

    __slots__ = ("_costs", "_rows")

    def __init__(self, costs: tuple[float, ...]) -> None:
        self._costs = costs
        self._rows = [1 << i for i in range(len(costs))]

    def of(self, rows: int) -> float:
        """The relative cost of a step of ``rows`` rows, at least 1."""
        right = min(max(1, bisect_right(self._rows, rows)), len(self._rows) - 1)
        low, high = self._costs[right - 1], self._costs[right]
        start = self._rows[right - 1]
        return low + (high - low) * (rows - start) / (self._rows[right] - start)


class StepGain:
    """One step being planned: so many rows, for so many tokens that are expected of it. Every sequence in turn adds as
    many guesses as make the step's tokens per second grow.

    Args:
        costs: what rows cost.
        rows: in the step so far.
        tokens: that it will bring without a guess.
        lost: tokens that a sequence misses later because its guesses are in flight (with ``depth`` 1 it is left out
            of the next step).
    """

    __slots__ = ("_costs", "_lost", "_rate", "_rows", "_tokens")

    def __init__(self, costs: StepCosts, rows: int, tokens: int, lost: int) -> None:
        self._costs = costs
        self._rows = rows
        self._tokens: float = tokens
        self._lost = lost
        self._rate = tokens / costs.of(rows)

    def choose(self, chances: list[float]) -> int:
        """How many guesses to add, where they come true with such ``chances``, each together with those before it."""
        best, gain, rate = 0, 0.0, self._rate * LEAST_GAIN
        expected = float(-self._lost)
        for count, chance in enumerate(chances, 1):
            if chance < _HOPELESS:
                break
            expected += chance
            new = (self._tokens + expected) / self._costs.of(self._rows + count)
            if new > rate:
                best, gain, rate = count, expected, new
        if best:
            self._rows += best
            self._tokens += gain
            self._rate = rate
        return best
