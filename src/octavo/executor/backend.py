"""Which kernels: chosen once, with the reason in words."""

from __future__ import annotations

from dataclasses import dataclass

from octavo.config import EngineConfig


@dataclass(frozen=True, slots=True)
class Backend:
    """A kernel backend (a name of :data:`octavo.kernels.BACKENDS`), and why it was chosen."""

    name: str
    reason: str


def choose_backend(config: EngineConfig) -> Backend:
    """The kernels for a CPU."""
    if config.kernels != "auto":
        return Backend(config.kernels, "as configured")
    return Backend("cpu", "compiled by Numba for this processor")
