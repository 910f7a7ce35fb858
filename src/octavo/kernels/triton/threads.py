"""The parts of a backend that have little to do here: the host's threads are torch's."""

from __future__ import annotations

from collections.abc import Callable

from octavo.kernels.reference.threads import set_num_threads

__all__ = ["set_num_threads", "warm_up"]


def warm_up(progress: Callable[[str, int, int], None] | None = None) -> None:
    """Returns at once, without calling ``progress``. What a kernel is compiled for are the shapes and dtypes of its
    launches, so that each is compiled at its first: in the step that memory is measured with, or before a graph is
    captured. Triton keeps the result on disk."""
