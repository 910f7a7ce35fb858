"""Which noise a sequence draws with."""

from __future__ import annotations


class NoiseIndexes:
    """Hands out noise indexes: no two sequences of a request and of all its forks draw with the same."""

    __slots__ = ("_next",)

    def __init__(self) -> None:
        self._next = 0

    def take(self, count: int) -> int:
        """The first of ``count`` new indexes in a row."""
        first = self._next
        self._next += count
        return first
