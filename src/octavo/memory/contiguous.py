"""Memory as systems kept it before paging: one contiguous stretch for each request. A baseline to compare with."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable

from octavo.errors import ConfigError, OutOfBlocksError


def reserve_max(prompt: int, output: int, longest: int) -> int:
    """Room for the longest request that may come (FasterTransformer; "Orca (Max)" in the PagedAttention paper)."""
    return longest


def power_of_two(prompt: int, output: int, longest: int) -> int:
    """Room for the request's length rounded up to a power of two ("Orca (Pow2)")."""
    return min(longest, 1 << max(0, prompt + output - 1).bit_length())


def oracle(prompt: int, output: int, longest: int) -> int:
    """Room for exactly what the request will turn out to need, as nobody can know ("Orca (Oracle)")."""
    return prompt + output


RULES: dict[str, Callable[[int, int, int], int]] = {
    "reserve-max": reserve_max,
    "power-of-two": power_of_two,
    "oracle": oracle,
}
"""How much to set aside for a request of ``prompt`` and ``output`` tokens where ``longest`` is the most possible."""


class ContiguousAllocator:
    """First fit over one stretch of ``capacity`` units: what is freed merges with the free space beside it, and what
    is left between requests is of use only to those that are small enough (external fragmentation).

    Args:
        capacity: units (token slots, or blocks) in all.
        buddy: hand out aligned powers of two alone, as a buddy allocator does: then a hole is never an odd size, and
            a request takes up to twice what it asked for.

    Raises:
        ConfigError: the capacity is not positive.
    """

    def __init__(self, capacity: int, *, buddy: bool = False) -> None:
        if isinstance(capacity, bool) or not isinstance(capacity, int) or capacity < 1:
            raise ConfigError(f"capacity={capacity!r} must be a positive integer")
        self.capacity = capacity
        self.buddy = buddy
        self._holes: list[tuple[int, int]] = [(0, capacity)]  # (start, end), in order, never touching
        self._held: dict[int, int] = {}  # start -> size

    @property
    def num_free(self) -> int:
        """Free units, in holes of whatever size."""
        return sum(end - start for start, end in self._holes)

    @property
    def holes(self) -> list[int]:
        """Sizes of the free stretches, in order of address."""
        return [end - start for start, end in self._holes]

    def allocate(self, size: int) -> int:
        """Take ``size`` units in one piece; returns the first one's address.

        Raises:
            OutOfBlocksError: no hole is large enough, however much is free in all; nothing was changed.
        """
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ConfigError(f"size={size!r} must be a positive integer")
        taken = 1 << (size - 1).bit_length() if self.buddy else size
        for place, (start, end) in enumerate(self._holes):
            first = -(-start // taken) * taken if self.buddy else start
            if first + taken <= end:
                rest = [(start, first), (first + taken, end)]
                self._holes[place : place + 1] = [hole for hole in rest if hole[0] < hole[1]]
                self._held[first] = taken
                return first
        raise OutOfBlocksError(
            f"no hole holds {taken} units in one piece: {self.num_free} of {self.capacity} are free, the largest hole "
            f"has {max(self.holes, default=0)}"
        )

    def release(self, address: int) -> None:
        """Give back what :meth:`allocate` returned.

        Raises:
            KeyError: nothing is held there.
        """
        start, end = address, address + self._held.pop(address)
        place = bisect_left(self._holes, (start, end))
        if place < len(self._holes) and self._holes[place][0] == end:
            end = self._holes.pop(place)[1]
        if place and self._holes[place - 1][1] == start:
            start = self._holes.pop(place - 1)[0]
        insort(self._holes, (start, end))
