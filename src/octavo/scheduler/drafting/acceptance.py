"""How often guesses came true."""

from __future__ import annotations

_WINDOW, _POOL_WINDOW = 16.0, 256.0
"""Guesses that an estimate remembers, or thereabouts: a text's, so that a change in it is noticed within as many; and
that of all texts."""

_TEXT_WEIGHT, _POOL_WEIGHT = 2.0, 4.0
"""So many guesses' weight have what all texts say of one, and what is believed of all texts beforehand."""

LONGEST = 8
"""Matches of so many tokens and more are taken for equal."""


class Acceptance:
    """The chance that the token after a match comes true, by the match's length in tokens. A guess that comes true is a
    longer match: so the chances of the tokens after it follow.

    Args:
        pool: what is known of other texts, and told of this one; None for the pool itself.
    """

    __slots__ = ("_counts", "_pool", "_window")

    def __init__(self, pool: Acceptance | None = None) -> None:
        self._pool = pool
        self._window = _POOL_WINDOW if pool is None else _WINDOW
        self._counts = [(0.0, 0.0)] * (LONGEST + 1)  # (came true, tried)

    def chance(self, length: int) -> float:
        """That of the token after a match of ``length`` tokens."""
        length = min(length, LONGEST)
        true, tried = self._counts[length]
        if self._pool is None:
            return (true + _POOL_WEIGHT * length / (length + 2)) / (tried + _POOL_WEIGHT)
        return (true + _TEXT_WEIGHT * self._pool.chance(length)) / (tried + _TEXT_WEIGHT)

    def note(self, length: int, true: bool) -> None:
        """After a match of ``length`` tokens, the next one came true, or did not."""
        place = min(length, LONGEST)
        a, b = self._counts[place]
        a, b = a + true, b + 1
        self._counts[place] = (a, b) if b <= self._window else (a * self._window / b, self._window)
        if self._pool is not None:
            self._pool.note(length, true)
