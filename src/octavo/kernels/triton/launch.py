"""How kernels are launched: what the launch tables are keyed by."""

from __future__ import annotations

import functools
from typing import TypeVar

import torch

Table = TypeVar("Table")

INTERPRETED = 90
"""The architecture whose launch shapes are taken where there is no GPU: in Triton's interpreter."""

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


def table_for(known: int, tables: dict[int, Table]) -> Table:
    """Of a kernel's tables for 80, 89 and 90 the one that an architecture runs with: the shared memory of 8.6 and of
    12.x is that of 8.9, other later ones have that of 9.0."""
    if known in tables:
        return tables[known]
    return tables[80 if known < 86 else 90 if 90 < known < 120 else 89]
