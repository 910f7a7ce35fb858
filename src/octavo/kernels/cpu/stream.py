"""Reading memory as one stream, as fast as it goes: the bound of everything that reads each weight once.

(The idea is McCalpin's STREAM, which copies; weights are only read, so only reading is measured here.)
"""

from __future__ import annotations

import ctypes

import numpy as np
import torch
from llvmlite import ir

from octavo.kernels.cpu.emitter import CACHE_LINE, I64, Emitter, Value
from octavo.kernels.cpu.jit import kernel
from octavo.kernels.cpu.launch import (
    ARGUMENTS,
    FIRST_ARGUMENT,
    NUM_TASKS,
    SCRATCH,
    TASK,
    WORKER,
    num_threads,
    packer,
    run,
)
from octavo.kernels.cpu.primitives import primitive
from octavo.kernels.cpu.words import fetch_add, load_i64, store_i64

_LANES = CACHE_LINE // 8  # words of a vector
_VECTORS = 4
STEP = _VECTORS * CACHE_LINE
"""Bytes that are read at once."""
_AHEAD = 24 * 1024
"""Bytes by which memory is asked for before it is read: as products do with their weights."""
_TASK_BYTES = 2**20

(ADDRESS, SIZE) = range(FIRST_ARGUMENT, FIRST_ARGUMENT + 8 * 2, 8)
_pack = packer("2q")


def _xor_words(address: int, size: int) -> int:
    words = (ctypes.c_int64 * (size // 8)).from_address(address)
    return int(np.bitwise_xor.reduce(np.ctypeslib.as_array(words)))


@primitive("iii", _xor_words)
def xor_words(e: Emitter, address: Value, size: Value) -> Value:
    """All 64-bit words of ``size`` bytes, a multiple of :data:`STEP`, taken together by exclusive or."""
    b, vector = e.b, ir.VectorType(I64, _LANES)
    zero = ir.Constant(vector, [0] * _LANES)
    sums = [e.variable(zero) for _ in range(_VECTORS)]
    with e.loop(e.const(0), size, STEP) as offset:
        place = b.add(address, offset)
        e.prefetch(b.add(place, e.const(_AHEAD)), STEP, near=2)
        for i, sum_ in enumerate(sums):
            pointer = b.inttoptr(b.add(place, e.const(i * CACHE_LINE)), vector.as_pointer())
            sum_.set(b.xor(sum_.get(), b.load(pointer, align=8)))
    total = sums[0].get()
    for sum_ in sums[1:]:
        total = b.xor(total, sum_.get())
    return e.halves(total, b.xor)


@kernel
def read_memory(p: int) -> None:
    """Read it all; what each worker saw is left in its cache line of the scratch memory."""
    mine = load_i64(p + SCRATCH) + fetch_add(p + WORKER, 1) * CACHE_LINE
    address, size, tasks = load_i64(p + ADDRESS), load_i64(p + SIZE), load_i64(p + NUM_TASKS)
    seen = 0
    while True:
        task = fetch_add(p + TASK, 1)
        if task >= tasks:
            break
        begin = task * _TASK_BYTES
        seen ^= xor_words(address + begin, min(_TASK_BYTES, size - begin))
    store_i64(mine, seen)


def checksum(words: torch.Tensor) -> int:
    """Read a tensor with all threads: its 64-bit words, taken together by exclusive or.

    Args:
        words: int64, contiguous, a multiple of :data:`STEP` bytes.

    Raises:
        ValueError: it is not.
    """
    if words.dtype != torch.int64 or not words.is_contiguous() or words.nbytes % STEP:
        raise ValueError(f"words of {words.dtype}, {words.nbytes} bytes: must be int64, a multiple of {STEP} bytes")
    threads = num_threads()
    seen = torch.zeros(threads, CACHE_LINE // 8, dtype=torch.int64)
    tasks = -(-words.nbytes // _TASK_BYTES)
    arguments = ARGUMENTS.here
    _pack(arguments.words, 0, 0, 0, tasks, seen.data_ptr(), CACHE_LINE, words.data_ptr(), words.nbytes)
    run(read_memory, threads, arguments)
    return int(np.bitwise_xor.reduce(seen.numpy(), axis=None))
