"""The memory that the C library keeps after it was freed."""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from typing import Any


@cache
def _trim() -> Any:
    if sys.platform != "linux":
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's: other libraries give memory back by themselves


def give_back() -> None:
    """Give freed memory back to the system.

    Loading allocates large pieces that live for a moment between others that stay; what is freed are holes, which the
    library keeps for whoever needs one of their size. Quantising a model of 0.6 billion weights left 400 MB of them.
    """
    trim = _trim()
    if trim is not None:
        trim(0)
