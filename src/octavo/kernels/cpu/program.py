"""Several calls as one: recorded once, run many times, with one launch.

A launch costs some microseconds, in Python, in the threads' waking up and in their waiting for the last of them: with
small batches as much as what is computed. So what a step does is recorded once for each size of batch, and then run by
threads that go from call to call by themselves: a call begins when all tasks of the one before it are done, whoever did
them, so that any number of threads may take part, and one may come late. (CUDA graphs do the same for a GPU.)

What changes from step to step is what is in memory, and for attention which sequences there are: the words that say
that are written anew for each run. Only the attention of batches in which every sequence brings one row is recorded.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from octavo.kernels.cpu import byte_linear, int8_rows
from octavo.kernels.cpu.attention import words as attention_words
from octavo.kernels.cpu.attention.attend import attend, decode_tasks
from octavo.kernels.cpu.attention.plan import PLANS, Needs, Plan
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
    RecordedCall,
    num_threads,
    packer,
    run,
)
from octavo.kernels.cpu.linear import multiply, multiply_tasks
from octavo.kernels.cpu.look_up import look_up_rows, look_up_tasks
from octavo.kernels.cpu.rows import norm_rows, norm_tasks
from octavo.kernels.cpu.words import fetch_add, load_i64, wait_for
from octavo.kernels.metadata import AttentionMetadata

CALL_BYTES = 8 * MAX_WORDS
COUNTER_BYTES = 128
"""A call's counters lie on cache lines of their own: tasks taken, and behind it tasks done."""

MULTIPLY, NORM, QUANTIZE, MULTIPLY_BYTES, MULTIPLY_GROUPS, ATTEND, LOOK_UP = range(7)
KINDS = {
    multiply: MULTIPLY,
    norm_rows: NORM,
    quantize_rows: QUANTIZE,
    multiply_bytes: MULTIPLY_BYTES,
    multiply_groups: MULTIPLY_GROUPS,
    attend: ATTEND,
    look_up_rows: LOOK_UP,
}
SHARED_BYTES = {
    QUANTIZE: int8_rows.SHARED_BYTES,
    MULTIPLY_BYTES: byte_linear.SHARED_BYTES,
    MULTIPLY_GROUPS: byte_linear.SHARED_BYTES,
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
        elif kind == ATTEND:
            done = decode_tasks(call, counter, memory)
        elif kind == LOOK_UP:
            done = look_up_tasks(call, counter, memory)
        else:
            done = norm_tasks(call, counter, memory)
        fetch_add(counter + COUNTER_BYTES // 2, done)
        wait_for(counter + COUNTER_BYTES // 2, load_i64(call + NUM_TASKS))


def _aligned(size: int) -> int:
    return size + 63 & -64


def _word(words: bytes, offset: int) -> int:
    return int.from_bytes(words[offset : offset + 8], "little")


class _Attention(NamedTuple):
    """Recorded calls of attention that have one plan."""

    place: int  #: of the metadata, among those that the program is given
    needs: Needs  #: but for the metadata
    calls: NDArray[np.int64]


class Program:
    """Recorded calls. It names the memory that they were recorded with, which must stay; only what is in it may
    change."""

    def __init__(self) -> None:
        self._number = 0

    def _write(self, calls: list[RecordedCall], meta: Sequence[AttentionMetadata]) -> None:
        self._number = len(calls)
        self._words = np.zeros((len(calls), MAX_WORDS), np.int64)
        for words, call in zip(self._words, calls, strict=True):
            words[:] = np.frombuffer(call.words, np.int64)
        self._kinds = (ctypes.c_int64 * len(calls))(*(KINDS[call.kernel] for call in calls))
        size = COUNTER_BYTES * len(calls)
        self._room = ctypes.create_string_buffer(size + COUNTER_BYTES)
        start = ctypes.addressof(self._room)
        self._counters, self._counters_size = start + -start % COUNTER_BYTES, size
        self._addresses = self._words.ctypes.data, ctypes.addressof(self._kinds), self._counters
        self._stride = max((_word(call.words, SCRATCH_STRIDE) for call in calls), default=0)
        self._shared = _aligned(
            max(
                (
                    _word(call.words, SHARED_BYTES[KINDS[call.kernel]])
                    for call in calls
                    if KINDS[call.kernel] in SHARED_BYTES
                ),
                default=0,
            )
        )
        self._attentions = _attentions(calls, meta)

    def run(self, meta: Sequence[AttentionMetadata] = ()) -> None:
        """Do it all.

        Args:
            meta: where attention was recorded, what stands for each of the metadata it was recorded with: of as many
                sequences, of one row each.

        Raises:
            ValueError: ``meta`` is not that.
        """
        if not self._number:
            return
        threads = num_threads()
        ctypes.memset(self._counters, 0, self._counters_size)
        plans = [self._plan(attention, meta) for attention in self._attentions]
        arguments = ARGUMENTS.here
        own = threads * self._stride
        memory = arguments.scratch(own + self._shared + max((plan.shared for plan in plans), default=0))
        attending = memory + own + self._shared
        for attention, plan in zip(self._attentions, plans, strict=True):
            self._tell(attention, plan, attending)
        _pack(arguments.words, 0, 0, 0, 0, memory, self._stride, *self._addresses, self._number, memory + own)
        run(play, threads, arguments)

    def _plan(self, attention: _Attention, meta: Sequence[AttentionMetadata]) -> Plan:
        plan = PLANS.find(attention.needs._replace(meta=meta[attention.place]))
        rows = int(self._words[attention.calls[0], attention_words.NUM_ROWS // 8])
        if plan.mode != attention_words.DECODES or plan.batch.num_rows != rows:
            raise ValueError(f"recorded with {rows} sequences of one row each: meta must describe as many")
        return plan

    def _tell(self, attention: _Attention, plan: Plan, memory: int) -> None:
        """Write what attention has to know of this step; ``memory`` is what its threads share, for one layer after
        another."""
        if plan.counters:
            ctypes.memset(memory, 0, plan.counters)
        calls, first = attention.calls, attention_words.PAGE // 8
        words = np.frombuffer(plan.words, np.int64)
        self._words[calls, NUM_TASKS // 8] = plan.tasks
        self._words[calls, attention_words.SLOTS // 8] = plan.batch.slots
        self._words[calls, first : first + len(words)] = words
        self._words[calls, attention_words.SHARED // 8] = memory


def _attentions(calls: list[RecordedCall], meta: Sequence[AttentionMetadata]) -> list[_Attention]:
    places = {id(one): place for place, one in enumerate(meta)}
    found: dict[tuple[object, ...], _Attention] = {}
    for index, call in enumerate(calls):
        if not isinstance(call.needs, Needs):
            continue
        place = places.get(id(call.needs.meta))
        if place is None:
            raise ValueError("attention can be recorded with the metadata given to the recording only")
        key = (place, *call.needs[1:])
        before = found[key].calls if key in found else np.empty(0, np.int64)
        found[key] = _Attention(place, call.needs, np.append(before, index))
    return list(found.values())


@contextmanager
def recording(meta: Sequence[AttentionMetadata] = ()) -> Iterator[Program]:
    """Within it, look-ups, products with panels, norms and fused attention, given ``out``, are not computed but
    recorded, on the calling thread.

    Args:
        meta: what attention is recorded with, each of them with sequences of one row only; :meth:`Program.run` is
            given others in their place.

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
    others = {call.kernel.name for call in recorded if call.kernel not in KINDS}
    if others:
        raise ValueError(
            f"only look-ups, products, norms and attention can be recorded, not {', '.join(sorted(others))}"
        )
    program._write(recorded, meta)
