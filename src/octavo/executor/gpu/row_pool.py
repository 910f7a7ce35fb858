"""Rows of device memory, for those who need one."""

from __future__ import annotations


class RowPool:
    """Numbers from 0 on, the lowest free one first, so that what they index stays small."""

    def __init__(self) -> None:
        self._free: list[int] = []
        self._used = 0

    @property
    def size(self) -> int:
        """One more than the highest number ever given."""
        return self._used

    def take(self) -> int:
        """A number that nobody has."""
        if self._free:
            self._free.sort(reverse=True)
            return self._free.pop()
        self._used += 1
        return self._used - 1

    def give_back(self, row: int) -> None:
        """Nobody has it any more."""
        self._free.append(row)
