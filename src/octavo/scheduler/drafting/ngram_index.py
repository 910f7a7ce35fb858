"""Where the last few tokens of a text have stood before."""

from __future__ import annotations

from typing import NamedTuple


class Match(NamedTuple):
    """The text's last tokens were found earlier in it."""

    length: int  #: how many of them
    place: int  #: the position of the token that followed them there


class NgramIndex:
    """For each n-gram of a list of tokens that only grows, the position after its latest occurrence.

    Each token is filed once, under one n-gram for each length: a look-up costs as much as the tokens that are new.
    (Prompt lookup decoding: Saxena, 2023; n-gram matching within one's own text: Yang et al., "Inference with
    reference", 2023.)

    Args:
        shortest, longest: the lengths n to look for.
    """

    __slots__ = ("_filed", "_follows")

    def __init__(self, shortest: int, longest: int) -> None:
        self._follows: dict[int, dict[tuple[int, ...], int]] = {n: {} for n in range(longest, shortest - 1, -1)}
        self._filed = 0  # n-grams that are followed by a token up to this position are in the dictionaries

    def find(self, tokens: list[int]) -> Match | None:
        """The latest earlier occurrence of the longest n-gram that ends ``tokens``, if there is one; ``tokens`` begin
        with those of the call before."""
        self._file(tokens)
        for length, follows in self._follows.items():
            place = follows.get(tuple(tokens[-length:]))
            if place is not None:
                return Match(length, place)
        return None

    def _file(self, tokens: list[int]) -> None:
        last = len(tokens) - 1  # the n-gram that ends the text is followed by nothing yet
        for length, follows in self._follows.items():
            first = max(length, self._filed + 1)
            if first <= last:
                columns = (tokens[first - length + i : last - length + i + 1] for i in range(length))
                follows.update(zip(zip(*columns, strict=True), range(first, last + 1), strict=True))
        self._filed = max(self._filed, last)


def continuation(tokens: list[int], place: int, count: int) -> list[int]:
    """``count`` tokens as they stand from ``place`` on; where that runs into the end of ``tokens``, the text is taken
    to go on as it has gone on there: with itself."""
    found = tokens[place : place + count]
    period = len(tokens) - place
    while len(found) < count:
        found.append(found[-period])
    return found
