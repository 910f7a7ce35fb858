"""The map from a sequence's logical blocks to physical ones."""

from __future__ import annotations


class BlockTable:
    """A sequence's logical -> physical map for one layer group: ``blocks[i]`` holds positions ``i * block_size``
    and following. ``sent`` leading entries are known to the executor; ``gone`` leading entries are HOLEs, for their
    tokens have left the group's window."""

    __slots__ = ("blocks", "gone", "sent")

    def __init__(self) -> None:
        self.blocks: list[int] = []
        self.sent = 0
        self.gone = 0
