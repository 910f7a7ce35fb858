"""How many guesses are worth their rows."""

from __future__ import annotations

LEAST_GAIN = 1.05
"""A step's tokens per second must be expected to grow so much for its first guess: what is less is lost in noise."""

CAUTION = 1.5
"""A guess's row is taken to cost so many times what it was measured to: it costs the planner's time beside, and where
one of several ends sooner for it, the others' rows become dearer."""

_HOPELESS = 0.01
"""Guesses less likely than this are not looked at."""


class StepCosts:
    """What a step takes by its number of rows, relative to a step of one row: linear between the numbers known, and
    beyond them.

    Args:
        costs: of steps of 1, 2, 4, 8, ... rows; two at least, the first 1.
    """

    __slots__ = ("_costs", "_table")

    def __init__(self, costs: tuple[float, ...]) -> None:
        self._costs = costs
        self._table = [0.0]  # by number of rows, as far as anybody has asked

    def upto(self, rows: int) -> list[float]:
        """By number of rows, up to ``rows`` at least, the relative cost of a step."""
        while len(self._table) <= rows:
            self._table.append(self._of(len(self._table)))
        return self._table

    def _of(self, rows: int) -> float:
        right = min(max(1, (rows - 1).bit_length()), len(self._costs) - 1)
        low, high = self._costs[right - 1], self._costs[right]
        start = 1 << right - 1
        return low + (high - low) * (rows - start) / start


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

    __slots__ = ("_base", "_costs", "_lost", "_rate", "_rows", "_tokens")

    def __init__(self, costs: StepCosts, rows: int, tokens: int, lost: int) -> None:
        self._costs = costs
        self._rows = rows
        self._tokens: float = tokens
        self._lost = lost
        self._base = costs.upto(rows)[rows]
        self._rate = tokens / self._base

    def is_possible(self, most: int) -> bool:
        """Whether ``most`` guesses in one sequence would be worth their rows if they were sure to come true."""
        bar = self._rate * LEAST_GAIN
        return any(
            self._tokens + count - self._lost > bar * self._cost(self._rows + count) for count in range(1, most + 1)
        )

    def choose(self, chances: list[float]) -> int:
        """How many guesses to add, where they come true with such ``chances``, each together with those before it."""
        best, gain, rate = 0, 0.0, self._rate * LEAST_GAIN
        base, rows, tokens = self._base, self._rows, self._tokens
        costs = self._costs.upto(rows + len(chances))
        expected = float(-self._lost)
        for count, chance in enumerate(chances, 1):
            if chance < _HOPELESS:
                break
            expected += chance
            new = (tokens + expected) / (base + CAUTION * (costs[rows + count] - base))
            if new > rate:
                best, gain, rate = count, expected, new
        if best:
            self._rows += best
            self._tokens += gain
            self._rate = rate
        return best

    def _cost(self, rows: int) -> float:
        return self._base + CAUTION * (self._costs.upto(rows)[rows] - self._base)
