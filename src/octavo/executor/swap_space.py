"""The host's side of swapping: pages moved out of the device cache."""

from __future__ import annotations

import torch


class SwapSpace:
    """Pages in host memory, as many as the plans have named so far.

    Args:
        page_bytes: size of one page.
    """

    def __init__(self, page_bytes: int) -> None:
        self._pages = torch.empty(0, page_bytes, dtype=torch.uint8)

    def swap_out(self, cache: torch.Tensor, moves: tuple[tuple[int, int], ...]) -> None:
        """Copy pages out of ``cache`` (uint8 [num_blocks, page_bytes]): ``moves`` are (device block, host block)."""
        device, host = zip(*moves, strict=True)
        self._reserve(max(host) + 1)
        self._pages[list(host)] = cache[list(device)].to(self._pages.device)

    def swap_in(self, cache: torch.Tensor, moves: tuple[tuple[int, int], ...]) -> None:
        """Copy pages back into ``cache``: ``moves`` are (host block, device block)."""
        host, device = zip(*moves, strict=True)
        cache[list(device)] = self._pages[list(host)].to(cache.device)

    def _reserve(self, pages: int) -> None:
        held, size = self._pages.shape
        if pages > held:
            grown = torch.empty(max(pages, 2 * held), size, dtype=torch.uint8)
            grown[:held] = self._pages
            self._pages = grown
