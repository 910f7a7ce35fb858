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
    """The kernels for ``config.device``."""
    if config.kernels != "auto":
        return Backend(config.kernels, "as configured")
    if config.device == "cuda":
        return Backend("triton", "compiled by Triton for this GPU")
    return Backend("cpu", "compiled by Numba for this processor")
