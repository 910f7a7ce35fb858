"""Which sequences wait in host memory, and the moves of the step being planned."""

from __future__ import annotations

from collections.abc import Iterable

from octavo.memory.host_pool import HostPool
from octavo.plan import HOLE
from octavo.request import Sequence, Swapped


class SwapTable:
    """Host pages by sequence.

    Within a step everything leaves the device before anything comes back (release, swap_out, copies, swap_in), so a
    page that is read by a step must not be written by the same step: what is given back here can be had again when the
    plan is made (:meth:`end_step`), not before.

    Args:
        num_host_blocks: pages at the most; 0 for none.
    """

    __slots__ = ("_returned", "host", "moves_in", "moves_out", "num_steps", "swapped")

    def __init__(self, num_host_blocks: int) -> None:
        self.host = HostPool(num_host_blocks)
        self.swapped: dict[int, Sequence] = {}  # by id
        self.moves_out: list[tuple[int, int]] = []  # (device block, host block)
        self.moves_in: dict[int, int] = {}  # device block -> host block
        self.num_steps = 0  # planned so far
        self._returned: list[int] = []

    def put(self, seq: Sequence, first: int, length: int, rows: list[tuple[int, ...]]) -> None:
        """Move ``rows`` (device blocks by group, from logical block ``first`` on) to host pages.

        Raises:
            OutOfBlocksError: too few are free; nothing was changed.
        """
        pages = iter(self.host.allocate(sum(block != HOLE for row in rows for block in row)))
        placed = tuple(tuple(HOLE if block == HOLE else next(pages) for block in row) for row in rows)
        for row, hosts in zip(rows, placed, strict=True):
            self.moves_out.extend((block, host) for block, host in zip(row, hosts, strict=True) if block != HOLE)
        seq.swapped = Swapped(first, length, placed)
        self.swapped[seq.id] = seq

    def discard(self, seq: Sequence) -> None:
        """Give the sequence's pages back."""
        if seq.swapped is not None:
            self.give_back(_pages(seq.swapped))
            seq.swapped = None
            del self.swapped[seq.id]

    def give_back(self, pages: Iterable[int]) -> None:
        """Pages that this step may still read; they are free after it."""
        self._returned.extend(pages)

    def end_step(self) -> None:
        """The moves are in a plan: what they read may be overwritten by later ones."""
        self.host.release(self._returned)
        self._returned.clear()
        self.num_steps += 1
        self.moves_out.clear()
        self.moves_in.clear()

    def audit(self, others: Iterable[int] = ()) -> None:
        """Check that every page is free, or held once: by a sequence, by a move under way, or among ``others``.

        Raises:
            RuntimeError: it is not so.
        """
        held = [page for seq in self.swapped.values() if seq.swapped is not None for page in _pages(seq.swapped)]
        pages = sorted([*self.host.free_blocks(), *held, *self._returned, *others])
        if pages != list(range(self.host.num_blocks)):
            raise RuntimeError(f"host pages have leaked, or are held twice: {pages} of {self.host.num_blocks}")


def _pages(swapped: Swapped) -> list[int]:
    return [page for row in swapped.pages for page in row if page != HOLE]
