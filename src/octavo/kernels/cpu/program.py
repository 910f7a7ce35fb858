"""Several calls as one: recorded once, run many times, with one launch.

A launch costs some microseconds, in Python, in the threads' waking up and in their waiting for the last of them: with
small batches as much as what is computed. So what a step does between two attentions is recorded once for each size of
batch, and then run by threads that go from call to call by themselves: a call begins when all tasks of the one before
it are done, whoever did them, so that any number of threads may take part, and one may come late.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

from octavo.kernels.cpu import int8_linear, int8_rows
from octavo.kernels.cpu.grouped_linear import multiply_groups, multiply_groups_tasks
from octavo.kernels.cpu.int8_linear import multiply_bytes, multiply_bytes_tasks
from octavo.kernels.cpu.int8_rows import quantize_rows, quantize_tasks
from octavo.kernels.cpu.jit import kernel
from octavo.kernels.cpu.launch import (
    ARGUMENTS,
    FIRST_ARGUMENT,
    MAX_WORDS,
    NUM_TASKS,
    SCRATCH,
    SCRATCH_STRIDE,
    WORKER,
    num_threads,
    packer,
    run,
)
from octavo.kernels.cpu.linear import multiply, multiply_tasks
from octavo.kernels.cpu.rows import norm_rows, norm_tasks
from octavo.kernels.cpu.words import fetch_add, load_i64, wait_for

CALL_BYTES = 8 * MAX_WORDS
COUNTER_BYTES = 128
"""A call's counters lie on cache lines of their own: tasks taken, and behind it tasks done."""

MULTIPLY, NORM, QUANTIZE, MULTIPLY_BYTES, MULTIPLY_GROUPS = range(5)
KINDS = {
    multiply: MULTIPLY,
    norm_rows: NORM,
    quantize_rows: QUANTIZE,
    multiply_bytes: MULTIPLY_BYTES,
    multiply_groups: MULTIPLY_GROUPS,
}
SHARED_BYTES = {
    QUANTIZE: int8_rows.SHARED_BYTES,
    MULTIPLY_BYTES: int8_linear.SHARED_BYTES,
    MULTIPLY_GROUPS: int8_linear.SHARED_BYTES,
}
"""Calls that hand something on to the next in memory that all threads see: where they say how much."""

(CALLS, KINDS_AT, COUNTERS, NUM_CALLS, SHARED) = range(FIRST_ARGUMENT, FIRST_ARGUMENT + 8 * 5, 8)
_pack = packer("5q")


@kernel
def play(p: int) -> None:
    """Call after call."""
    memory = load_i64(p + SCRATCH) + fetch_add(p + WORKER, 1) * load_i64(p + SCRATCH_STRIDE)
    calls, kinds, counters = load_i64(p + CALLS), load_i64(p + KINDS_AT), load_i64(p + COUNTERS)
    shared = load_i64(p + SHARED)
    for i in range(load_i64(p + NUM_CALLS)):
        call, counter = calls + i * CALL_BYTES, counters + i * COUNTER_BYTES
        kind = load_i64(kinds + 8 * i)
        if kind == MULTIPLY:
            done = multiply_tasks(call, counter, memory)
        elif kind == MULTIPLY_BYTES:
            done = multiply_bytes_tasks(call, counter, memory, shared)
        elif kind == MULTIPLY_GROUPS:
            done = multiply_groups_tasks(call, counter, memory, shared)
        elif kind == QUANTIZE:
            done = quantize_tasks(call, counter, shared)
        else:
            done = norm_tasks(call, counter, memory)
        fetch_add(counter + COUNTER_BYTES // 2, done)
        wait_for(counter + COUNTER_BYTES // 2, load_i64(call + NUM_TASKS))


def _word(words: bytes, offset: int) -> int:
    return int.from_bytes(words[offset : offset + 8], "little")


class Program:
    """Recorded calls. It names the memory that they were recorded with, which must stay; only what is in it may
    change."""

    def __init__(self) -> None:
        self._number = 0

    def _write(self, calls: list[tuple[int, bytes]]) -> None:
        self._number = len(calls)
        self._calls = ctypes.create_string_buffer(b"".join(words for _, words in calls), CALL_BYTES * len(calls) + 1)
        self._kinds = (ctypes.c_int64 * len(calls))(*(kind for kind, _ in calls))
        size = COUNTER_BYTES * len(calls)
        self._room = ctypes.create_string_buffer(size + COUNTER_BYTES)
        start = ctypes.addressof(self._room)
        self._counters, self._counters_size = start + -start % COUNTER_BYTES, size
        self._addresses = ctypes.addressof(self._calls), ctypes.addressof(self._kinds), self._counters
        self._stride = max((_word(words, SCRATCH_STRIDE) for _, words in calls), default=0)
        self._shared = max(
            (_word(words, SHARED_BYTES[kind]) for kind, words in calls if kind in SHARED_BYTES), default=0
        )

    def run(self) -> None:
        """Do it all."""
        if not self._number:
            return
        threads = num_threads()
        ctypes.memset(self._counters, 0, self._counters_size)
        arguments = ARGUMENTS.here
        memory = arguments.scratch(threads * self._stride + self._shared)
        _pack(
            arguments.words, 0, 0, 0, 0, memory, self._stride, *self._addresses, self._number,
            memory + threads * self._stride,
        )  # fmt: skip
        run(play, threads, arguments)


@contextmanager
def recording() -> Iterator[Program]:
    """Within it, products with panels and norms, given ``out``, are not computed but recorded, on the
    calling thread.

    Raises:
        ValueError: within it, something else was called, or another recording begun.
    """
    here = ARGUMENTS.here
    if here.recorded is not None:
        raise ValueError("a recording is under way already")
    program = Program()
    recorded = here.recorded = []
    try:
        yield program
    finally:
        here.recorded = None
    others = {called.name for called, _ in recorded if called not in KINDS}
    if others:
        raise ValueError(f"only products and norms can be recorded, not {', '.join(sorted(others))}")
    program._write([(KINDS[called], words) for called, words in recorded])
