"""What it would take to move a request's memory away."""

from __future__ import annotations

from typing import NamedTuple


class Departure(NamedTuple):
    """The part of a request's memory that goes with it when it is swapped out."""

    num_pages: int  #: blocks to move
    spans: tuple[tuple[int, int], ...]  #: for each sequence the positions whose KV they hold, from and up to
