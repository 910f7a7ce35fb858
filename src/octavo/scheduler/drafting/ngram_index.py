"""Where the last few tokens of a text have stood before."""

from __future__ import annotations

from typing import NamedTuple


class Match(NamedTuple):
    """The text's last tokens were found earlier in it."""

    length: int  #: how many of them
    place: int  #: the position of the token that followed them there


class NgramIndex:
    """For each n-gram of a list of tokens that only grows, the position after its latest occurrence.

    Each token is looked up and filed once, under one n-gram of each length: a look-up costs as much as the tokens that
    are new. (Prompt lookup decoding: Saxena, 2023; n-gram matching within one's own text: Yang et al., "Inference with
    reference", 2023.)

    Args:
        shortest, longest: the lengths n to look for.
    """

    __slots__ = ("_key", "_match", "_seen", "_tables")

    def __init__(self, shortest: int, longest: int) -> None:
        # Shortest first, with the mask that leaves so many words of a key. A key holds the last tokens in one integer,
        # 32 bits each, one more than the token: so a word that is 0 lies before the text.
        self._tables: list[tuple[int, int, dict[int, int]]] = [
            (n, (1 << 32 * n) - 1, {}) for n in range(shortest, longest + 1)
        ]
        self._key = 0
        self._seen = 0  # tokens that are filed
        self._match: Match | None = None

    def find(self, tokens: list[int]) -> Match | None:
        """The latest earlier occurrence of the longest n-gram that ends ``tokens``, if there is one; ``tokens`` begin
        with those of the call before."""
        count = len(tokens)
        if count == self._seen:
            return self._match
        tables, key = self._tables, self._key
        most = tables[-1][1]
        for end in range(self._seen + 1, count):
            key = (key << 32 | tokens[end - 1] + 1) & most
            for _, mask, follows in tables:
                follows[key & mask] = end
        self._key = key = (key << 32 | tokens[-1] + 1) & most
        self._seen = count
        length = place = 0
        for n, mask, follows in tables:
            own = key & mask
            found = follows.get(own)
            if found is not None:
                length, place = n, found
            follows[own] = count
        self._match = Match(length, place) if length else None
        return self._match


def match_length(tokens: list[int], match: Match, most: int) -> int:
    """How many of the last tokens, up to ``most`` or the match's own number, stood where the match was found."""
    length, before = match.length, match.place - 1
    while length < most and length <= before and tokens[before - length] == tokens[-1 - length]:
        length += 1
    return length


def continuation(tokens: list[int], place: int, count: int) -> list[int]:
    """``count`` tokens as they stand from ``place`` on; where that runs into the end of ``tokens``, the text is taken
    to go on as it has gone on there: with itself."""
    found = tokens[place : place + count]
    period = len(tokens) - place
    while len(found) < count:
        found.append(found[-period])
    return found
