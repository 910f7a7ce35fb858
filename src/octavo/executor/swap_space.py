"""The host's side of swapping: pages moved out of the device cache."""

from __future__ import annotations

import time
from typing import Protocol

import torch

from octavo.errors import EngineError

Moves = tuple[tuple[int, int], ...]


class SwapSpace:
    """Pages in host memory: pinned where the device is a GPU, so that the link runs at its full speed; plain on a CPU,
    where the system hands them out when they are first written.

    Moves are queued on the device's current stream behind the work that fills the pages and before the work that reads
    them, so no one has to wait for them.

    Args:
        num_blocks: pages.
        page_bytes: size of one.
        device: where the cache is.
    """

    def __init__(self, num_blocks: int, page_bytes: int, device: torch.device | str = "cpu") -> None:
        pinned = torch.device(device).type == "cuda"
        self._pages = torch.empty(num_blocks, page_bytes, dtype=torch.uint8, pin_memory=pinned)

    @property
    def num_blocks(self) -> int:
        """Pages in all."""
        return len(self._pages)

    def swap_out(self, cache: torch.Tensor, moves: Moves) -> None:
        """Copy pages out of ``cache`` (uint8 [num_blocks, page_bytes]): ``moves`` are (device block, host block).

        Raises:
            EngineError: a move names a page that does not exist; nothing was moved.
        """
        check_moves(cache, self.num_blocks, moves)
        for block, host in moves:
            self._pages[host].copy_(cache[block], non_blocking=True)

    def swap_in(self, cache: torch.Tensor, moves: Moves) -> None:
        """Copy pages back into ``cache``: ``moves`` are (host block, device block).

        Raises:
            EngineError: a move names a page that does not exist; nothing was moved.
        """
        check_moves(cache, self.num_blocks, tuple((block, host) for host, block in moves))
        for host, block in moves:
            cache[block].copy_(self._pages[host], non_blocking=True)


class Swaps(Protocol):
    """A swap space of any kind."""

    @property
    def num_blocks(self) -> int:
        """Pages in all."""

    def swap_out(self, cache: torch.Tensor, moves: Moves) -> None:
        """Copy pages out."""

    def swap_in(self, cache: torch.Tensor, moves: Moves) -> None:
        """Copy pages back."""


def check_moves(cache: torch.Tensor, num_host_blocks: int, moves: Moves) -> None:
    """Whether (device block, host block) pairs name pages that exist.

    Raises:
        EngineError: one does not.
    """
    for block, host in moves:
        if not (0 <= block < len(cache) and 0 <= host < num_host_blocks):
            raise EngineError(
                f"a swap between block {block} of {len(cache)} and host block {host} of {num_host_blocks}"
            )


def measure_bandwidth(space: Swaps, cache: torch.Tensor) -> float:
    """Bytes a second that the moves bring, out and in: the best of three rounds over up to 32 MiB of pages. Pages of
    the space are overwritten, those of the cache keep their content."""
    count = max(1, min(space.num_blocks, len(cache), 2**25 // cache.shape[1]))
    moves = tuple((page, page) for page in range(count))
    best = float("inf")
    for _ in range(3):
        began = time.perf_counter()
        space.swap_out(cache, moves)
        space.swap_in(cache, moves)
        if cache.is_cuda:
            torch.cuda.synchronize(cache.device)
        best = min(best, time.perf_counter() - began)
    return 2 * count * cache.shape[1] / best
