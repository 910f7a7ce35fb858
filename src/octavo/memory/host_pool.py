"""Which pages of host memory hold a swapped block."""

from __future__ import annotations

from collections.abc import Iterable

from octavo.errors import OutOfBlocksError


class HostPool:
    """A bounded pool of host pages, named by number; what backs them is the executor's business.

    Args:
        num_blocks: pages at the most; 0 for none.
    """

    __slots__ = ("_free", "num_blocks")

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))

    @property
    def num_free(self) -> int:
        """Pages that can be had."""
        return len(self._free)

    def allocate(self, count: int) -> list[int]:
        """Take ``count`` pages.

        Raises:
            OutOfBlocksError: fewer are free; nothing was taken.
        """
        if count > len(self._free):
            raise OutOfBlocksError(f"{count} host blocks are needed, {len(self._free)} of {self.num_blocks} are free")
        taken = self._free[len(self._free) - count :][::-1]
        del self._free[len(self._free) - count :]
        return taken

    def release(self, blocks: Iterable[int]) -> None:
        """Give pages back."""
        self._free.extend(reversed(list(blocks)))

    def free_blocks(self) -> list[int]:
        """The free pages. O(number free): for audits."""
        return list(self._free)
