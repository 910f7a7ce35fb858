"""How often guesses came true."""

from __future__ import annotations

_WINDOW = 16.0
"""Guesses that an estimate remembers, or thereabouts: text that stops to repeat itself is noticed within as many."""

_FIRST = (1.0, 2.0)
"""What is taken to have been seen before anything was: (came true, tried), for the first token after a match."""

_LATER = (3.2, 4.0)
"""And for those that follow a token that came true."""


class Acceptance:
    """Of one text: the chance that a guess comes true. The first token of a continuation is a guess on how much a match
    of its length means; those after it only on how far the repetition goes, so they are counted apart."""

    __slots__ = ("_first", "_later")

    def __init__(self) -> None:
        self._first: dict[int, tuple[float, float]] = {}  # by length of the match
        self._later = _LATER

    def first(self, length: int) -> float:
        """The chance of the first token after a match of so many tokens."""
        true, tried = self._first.get(length, _FIRST)
        return true / tried

    @property
    def later(self) -> float:
        """The chance of a further token, if the one before it came true."""
        true, tried = self._later
        return true / tried

    def note(self, length: int, true: int, missed: bool) -> None:
        """Of a continuation after a match of ``length`` tokens, the first ``true`` ones came true, and then one did not
        (``missed``), or it is not known."""
        if true or missed:
            self._first[length] = _add(self._first.get(length, _FIRST), min(true, 1), 1)
        if true > 1 or (true and missed):
            self._later = _add(self._later, true - 1, true - 1 + missed)


def _add(counts: tuple[float, float], true: int, tried: int) -> tuple[float, float]:
    a, b = counts[0] + true, counts[1] + tried
    return (a, b) if b <= _WINDOW else (a * _WINDOW / b, _WINDOW)
