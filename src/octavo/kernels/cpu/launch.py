"""Running kernels on threads: torch's own.

torch's operators run on an OpenMP pool whose idle threads spin, waiting for the next operator. A second pool beside it
would fight with those for the cores at every change from one to the other. So kernels are run by the very OpenMP
library that torch has loaded, through its ``GOMP_parallel`` entry: the same threads do matrix products and kernels,
and a launch costs about as much as torch's own. Where that entry is missing, a pool of Python threads is used.

Arguments lie in an array of 64-bit words. The first ones are the same for all kernels:

====  ======================================================
word  meaning
====  ======================================================
0     the next task: kernels take tasks by an atomic add
1     workers so far: by an atomic add, each learns its number
2     number of tasks
3     address of the scratch memory
4     bytes of scratch of each worker
====  ======================================================
"""

from __future__ import annotations

import ctypes
import functools
import os
import struct
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple

import torch

from octavo.kernels.cpu.jit import DISABLED, Kernel

TASK, WORKER, NUM_TASKS, SCRATCH, SCRATCH_STRIDE, FIRST_ARGUMENT = range(0, 48, 8)
"""Byte offsets of the header's words; a kernel's own arguments start at ``FIRST_ARGUMENT``."""

HEADER = "5q"
MAX_WORDS = 96
_ALIGNMENT = 64


class RecordedCall(NamedTuple):
    """A call that was not made but written down (see ``program.py``)."""

    kernel: Kernel
    words: bytes
    needs: object = None  #: what has to be worked out anew whenever it is run, or None


class Arguments:
    """A host thread's argument words and scratch memory."""

    def __init__(self) -> None:
        self.words = (ctypes.c_int64 * MAX_WORDS)()
        self.bytes = memoryview(self.words).cast("B")
        self.address = ctypes.addressof(self.words)
        self.recorded: list[RecordedCall] | None = None
        """Where calls are collected instead of being run (see ``program.py``)."""
        self._scratch = torch.empty(0, dtype=torch.uint8)
        self._start = 0
        self._size = 0

    def scratch(self, size: int) -> int:
        """The address of ``size`` bytes, aligned to a cache line; what they hold is unspecified."""
        if size > self._size:
            self._scratch = torch.empty(size + size // 4 + _ALIGNMENT, dtype=torch.uint8)
            start = self._scratch.data_ptr()
            self._start = start + -start % _ALIGNMENT
            self._size = self._scratch.numel() - _ALIGNMENT
        return self._start


class _PerThread(threading.local):
    """Host threads may launch kernels at the same time: each has its own arguments."""

    def __init__(self) -> None:
        self.here = Arguments()


ARGUMENTS = _PerThread()


def _openmp() -> Any:
    """``GOMP_parallel`` of the OpenMP library that torch runs on, or None."""
    libraries = Path(torch.__file__).parent / "lib"
    names = [str(path) for pattern in ("libgomp*", "libomp*", "libiomp5*") for path in libraries.glob(pattern)]
    for name in [*names, "libgomp.so.1"]:
        try:
            # only what is loaded already: another copy would be another pool
            library = ctypes.CDLL(name, mode=getattr(os, "RTLD_NOLOAD", 0) | os.RTLD_NOW)
            entry = library.GOMP_parallel
        except (OSError, AttributeError):
            continue
        entry.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        entry.restype = None
        return entry
    return None


GOMP_PARALLEL = None if DISABLED else _openmp()


@functools.cache
def _python_threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="octavo-kernel")


def _on_python_threads(call: Callable[[int], Any], address: int, num_threads: int) -> None:
    others = [_python_threads(num_threads - 1).submit(call, address) for _ in range(num_threads - 1)]
    call(address)
    wait(others)


def run(kernel: Kernel, num_threads: int, arguments: Arguments) -> None:
    """Run ``kernel`` with ``num_threads`` threads; returns when all tasks are done."""
    if arguments.recorded is not None:
        arguments.recorded.append(RecordedCall(kernel, arguments.bytes.tobytes()))
    elif num_threads <= 1 or DISABLED:
        kernel.call(arguments.address)
    elif GOMP_PARALLEL is not None:
        GOMP_PARALLEL(kernel.address, arguments.address, num_threads, 0)
    else:
        _on_python_threads(kernel.call, arguments.address, num_threads)


def packer(fields: str) -> Callable[..., None]:
    """A function that writes the header and a kernel's arguments: ``q`` is an integer or address, ``d`` a float."""
    layout = struct.Struct(HEADER + fields)
    if layout.size > MAX_WORDS * 8:
        raise ValueError(f"{layout.size // 8} argument words; at most {MAX_WORDS}")
    return functools.partial(layout.pack_into)


def rows_per_task(rows: int, threads: int) -> int:
    """Rows of a task where tasks are runs of rows: four tasks to a thread, of 4 to 16 rows. Neighbours share lines of
    memory, and what a cache asks for ahead: threads that took row by row would take them from each other."""
    return max(4, min(16, rows // (4 * threads)))


num_threads = torch.get_num_threads
"""Threads that a large kernel uses: as many as torch's operators, always, for the pool is the same."""


def set_num_threads(num_threads: int) -> None:
    """Run kernels and torch's operators on ``num_threads`` threads from now on.

    Raises:
        ValueError: less than one.
    """
    if num_threads < 1:
        raise ValueError(f"num_threads={num_threads} must be at least 1")
    torch.set_num_threads(num_threads)
