"""One sequence's place in a cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

from octavo.request import Sequence

if TYPE_CHECKING:
    from octavo.paged_kv.batch import PagedBatch
    from octavo.paged_kv.cache import PagedKVCache


class PagedSequence:
    """One sequence's place in a :class:`PagedKVCache`. ``len()`` counts the tokens written on every layer."""

    __slots__ = ("_batch", "_cache", "_generation", "_inner", "_kept", "name")

    def __init__(self, cache: PagedKVCache, name: str, inner: Sequence) -> None:
        self.name = name
        self._cache = cache
        self._inner = inner
        self._batch: PagedBatch | None = None  # the one whose tokens are being written
        self._kept: int | None = None  # while swapped out: how many tokens it has on the host
        self._generation = 0  # counts what makes earlier batches void

    def __len__(self) -> int:
        return self._inner.num_computed if self._kept is None else self._kept

    def __repr__(self) -> str:
        where = "on the host" if self.is_swapped else f"blocks {self.block_table}"
        return f"PagedSequence({self.name!r}, {len(self)} tokens, {where})"

    @property
    def block_table(self) -> list[int]:
        """The physical block of each logical one, ``plan.HOLE`` where it was given back because its tokens have left
        the cache's window; empty while swapped out."""
        return list(self._inner.tables[0].blocks)

    @property
    def is_swapped(self) -> bool:
        """Whether its blocks are in host memory."""
        return self._kept is not None

    def append_tokens(self, count: int) -> None:
        """Reserve room for ``count`` tokens more than it has, ahead of writing them.

        Raises:
            OutOfBlocksError: too few blocks are free; nothing was changed.
            RequestError: it is swapped out, or was freed.
        """
        self._cache._append_tokens(self, count)

    def fork(self, name: str | None = None) -> PagedSequence:
        """A new sequence with the same tokens in the same blocks, the partial last one too; whoever writes to that
        first copies it (copy-on-write).

        Raises:
            RequestError: the name is taken, a batch of the sequence is half written, or it is swapped out.
        """
        return self._cache._fork(self, name)

    def swap_out(self) -> None:
        """Move its blocks to host memory. Blocks shared with others are copied there, and stay with the others.

        Raises:
            OutOfBlocksError: too few host blocks are free; nothing was changed.
            RequestError: it is swapped out already, or a batch of it is half written.
        """
        self._cache._swap_out(self)

    def swap_in(self) -> None:
        """Bring its blocks back; they need not be the same ones.

        Raises:
            OutOfBlocksError: too few blocks are free; nothing was changed.
            RequestError: it is not swapped out.
        """
        self._cache._swap_in(self)

    def free(self) -> None:
        """Give back its blocks, on the device or the host; it cannot be used after."""
        self._cache._free(self)
