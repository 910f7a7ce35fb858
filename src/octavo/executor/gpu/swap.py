"""Swapping beside the computation: pages move between the device and pinned host memory on a stream of their own."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator

import torch

from octavo.executor.gpu.accelerator import Accelerator, Event
from octavo.executor.swap_space import Moves, check_moves

logger = logging.getLogger(__name__)

_CHUNK_BYTES = 2**28
"""Host memory is pinned in pieces of so much at the most, when a page of them is first used: pinning takes a good part
of a second for each GiB. (A power of two, for PyTorch pins no other sizes.)"""


class PinnedSwapSpace:
    """Pages in pinned host memory; see :class:`octavo.executor.swap_space.SwapSpace`, whose methods it has.

    All moves are queued in order on one side stream, each after the work that the main stream had at that time, so they
    read what that work has written and overwrite what it has read. The main stream waits for pages that come in. It
    does not wait for pages that go out: whoever is about to write to blocks calls :meth:`before_writing`, and only if
    one of them is still being read there is anything to wait for.

    Args:
        accelerator: the device.
        num_blocks: pages.
        page_bytes: size of one.
    """

    def __init__(self, accelerator: Accelerator, num_blocks: int, page_bytes: int) -> None:
        self._accelerator = accelerator
        self._stream = accelerator.side_stream()
        self._num_blocks = num_blocks
        self._page_bytes = page_bytes
        self._chunk = max(1, min(num_blocks, _CHUNK_BYTES // page_bytes))  # pages
        self._chunks: dict[int, torch.Tensor] = {}
        self._leaving: dict[int, Event] = {}  # block -> when it has been read

    @property
    def num_blocks(self) -> int:
        """Pages in all."""
        return self._num_blocks

    def swap_out(self, cache: torch.Tensor, moves: Moves) -> None:
        """Queue copies out of ``cache`` (uint8 [num_blocks, page_bytes]): ``moves`` are (device block, host block).

        Raises:
            EngineError: a move names a page that does not exist; nothing was moved.
        """
        check_moves(cache, self._num_blocks, moves)
        runs = list(self._runs(moves))
        self._stream.wait(self._accelerator.main.record())
        for block, pages in runs:
            self._stream.copy(pages, cache[block : block + len(pages)])
        done = self._stream.record()
        self._leaving = {block: event for block, event in self._leaving.items() if not event.query()}
        self._leaving.update((block, done) for block, _ in moves)

    def swap_in(self, cache: torch.Tensor, moves: Moves) -> None:
        """Queue copies back into ``cache``: ``moves`` are (host block, device block).

        Raises:
            EngineError: a move names a page that does not exist; nothing was moved.
        """
        moves = tuple((block, host) for host, block in moves)
        check_moves(cache, self._num_blocks, moves)
        runs = list(self._runs(moves))
        self._stream.wait(self._accelerator.main.record())
        for block, pages in runs:
            self._stream.copy(cache[block : block + len(pages)], pages)
        self._accelerator.main.wait(self._stream.record())

    @property
    def is_reading(self) -> bool:
        """Whether pages may still be on their way out."""
        return bool(self._leaving)

    def before_writing(self, blocks: Iterable[int]) -> None:
        """The main stream's work from here on writes to these blocks (and to no others that were swapped out lately):
        let it wait until they have been read."""
        if not self._leaving:
            return
        waits = {id(event): event for block in blocks if (event := self._leaving.pop(block, None)) is not None}
        for event in waits.values():
            self._accelerator.main.wait(event)

    def _runs(self, moves: Moves) -> Iterator[tuple[int, torch.Tensor]]:
        """Moves of pages that lie one after the other on both sides, as one: the first block, and the host's pages."""
        begin = 0
        for end in range(1, len(moves) + 1):
            block, host = moves[begin]
            length = end - begin
            goes_on = end < len(moves) and moves[end] == (block + length, host + length)
            if not goes_on or (host + length) % self._chunk == 0:
                first = host % self._chunk
                yield block, self._pinned(host // self._chunk)[first : first + length]
                begin = end

    def _pinned(self, number: int) -> torch.Tensor:
        chunk = self._chunks.get(number)
        if chunk is None:
            shape = (min(self._chunk, self._num_blocks - number * self._chunk), self._page_bytes)
            try:
                chunk = self._accelerator.pinned(shape, torch.uint8)
            except (RuntimeError, MemoryError) as error:  # slower, and the host waits, but all the same right
                size = shape[0] * shape[1] >> 20
                logger.warning("%d MiB of host memory cannot be pinned, so swapping is slow: %s", size, error)
                chunk = torch.empty(shape, dtype=torch.uint8)
            self._chunks[number] = chunk
        return chunk
