"""How kernels are launched, and what the launch tables are keyed by."""

from __future__ import annotations

import functools
from typing import Any, TypeVar

import torch
import triton
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

Table = TypeVar("Table")

INTERPRETED = 90
"""The architecture whose launch shapes are taken where there is no GPU: in Triton's interpreter."""

SHORT_WAY = "3.6."
"""The versions of Triton that :func:`launch` knows the inside of."""

_takes_short_way = triton.__version__.startswith(SHORT_WAY)

_COMPILED: dict[tuple[Any, ...], Any] = {}
"""Compiled kernels by kernel, device, what the arguments specialise, and options."""


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    """``kernel[grid](*arguments, **options)``, in less of the host's time.

    Triton looks up its settings, hooks and the kernel's globals before every launch, which takes longer than the rest.
    Here its own binder says how the arguments specialise the kernel, and one that has been launched so before goes
    straight to Triton's C launcher. What hooks into Triton's launches is not called. Where Triton is another version
    than those whose inside this was written for, or interprets, it launches.
    """
    if not _takes_short_way or not isinstance(kernel, JITFunction):
        kernel[grid](*arguments, **options)
        return
    active = driver.active
    device = active.get_current_device()
    bound, specialization, _ = kernel.device_caches[device][4](*arguments, **options)
    key = (id(kernel), device, *specialization, *options.items())
    compiled = _COMPILED.get(key)
    if compiled is None:
        _COMPILED[key] = kernel[grid](*arguments, **options)
        return
    width, height, depth = (*grid, 1, 1)[:3]
    compiled.run(
        width, height, depth, active.get_current_stream(device), compiled.function, compiled.packed_metadata,
        None, None, None, *bound.values(),
    )  # fmt: skip


_ARCHITECTURES: dict[torch.device, int] = {}


def architecture(device: torch.device) -> int:
    """A device's compute capability as one number: 80 (A100), 86, 89 (Ada), 90 (H100), 100 ..."""
    known = _ARCHITECTURES.get(device)
    if known is None:
        known = INTERPRETED
        if device.type == "cuda":
            major, minor = torch.cuda.get_device_capability(device)
            known = 10 * major + minor
        _ARCHITECTURES[device] = known
    return known


@functools.cache
def num_processors(device: torch.device) -> int:
    """How many streaming multiprocessors a device has; few where there is no GPU, for there programs are slow."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


def ceil_div(total: int, size: int) -> int:
    """How many pieces of ``size`` make ``total``. (Triton's own may be called from kernels too, which takes the host
    microseconds.)"""
    return -(-total // size)


def next_power_of_2(size: int) -> int:
    """The least power of two that is not below ``size``, at least 1."""
    return 1 << (size - 1).bit_length() if size > 1 else 1


def table_for(known: int, tables: dict[int, Table]) -> Table:
    """Of a kernel's tables for 80, 89 and 90 the one that an architecture runs with: the shared memory of 8.6 and of
    12.x is that of 8.9, other later ones have that of 9.0."""
    if known in tables:
        return tables[known]
    return tables[80 if known < 86 else 90 if 90 < known < 120 else 89]


def registers(warps: int, resident: int = 1) -> int:
    """What a thread may have (``maxnreg``) where a processor holds ``resident`` programs of so many warps. Left to
    itself ptxas may choose fewer and spill, for the sake of programs that shared memory has no room for."""
    return min(255, 65_536 // (32 * warps * resident) // 8 * 8)
