"""The parts of a backend that have little to do here: threads are torch's, and nothing is compiled."""

from __future__ import annotations

from collections.abc import Callable

import torch


def set_num_threads(num_threads: int) -> None:
    """Run torch's operators on ``num_threads`` threads from now on."""
    torch.set_num_threads(num_threads)


def warm_up(progress: Callable[[str, int, int], None] | None = None) -> None:
    """There is nothing to compile: returns at once, without calling ``progress``."""
