"""A sequence's place in host memory."""

from __future__ import annotations

from typing import NamedTuple


class Swapped(NamedTuple):
    """What of a sequence waits in host memory, and where.

    The blocks before ``first`` were left on the device, in the hands of others that share them: if they are gone when
    the sequence comes back, it computes those again, and no more.
    """

    first: int  #: logical block that the first of ``pages`` holds
    length: int  #: tokens whose KV the sequence had
    pages: tuple[tuple[int, ...], ...]  #: for each logical block from ``first`` on, the host block of each layer group
