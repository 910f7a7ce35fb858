"""What a benchmark's figures were measured on."""

from __future__ import annotations

import platform
from typing import Any

from octavo.executor.machine import Machine


def describe() -> dict[str, Any]:
    """The processor, the instructions that matter to matrix products, the cores and memory that may be used."""
    machine = Machine.inspect()
    return {
        "cpu": machine.cpu,
        "flags": " ".join(machine.isa),
        "cores": machine.cores,
        "memory_gib": round(machine.total_bytes / 2**30, 1),
        "system": platform.platform(),
    }
