"""Which number format and which kernels: chosen once, with the reason in words."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from octavo.config import EngineConfig

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_NATIVE = {
    "bfloat16": ("amx_bf16", "avx512_bf16", "bf16"),
    "float16": ("avx512_fp16", "asimdhp"),
}
"""Instruction sets with products of that format: with one of them it is computed at speed."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen, and why."""

    name: str
    reason: str

    @property
    def dtype(self) -> torch.dtype:
        """The format that ``name`` names."""
        return _DTYPES[self.name]


def choose_dtype(config: EngineConfig, checkpoint: str | None, isa: tuple[str, ...]) -> Choice:
    """The format of weights, activations and KV memory on a CPU.

    Args:
        config: ``dtype`` is read.
        checkpoint: the checkpoint's own format, None where it does not say.
        isa: the machine's instruction sets (:attr:`Machine.isa`).
    """
    if config.dtype != "auto":
        return Choice(config.dtype, "as configured")
    if checkpoint is None or checkpoint == "float32":
        return Choice("float32", "the checkpoint's" if checkpoint else "the checkpoint does not say")
    native = [name for name in _NATIVE[checkpoint] if name in isa]
    if native:
        return Choice(checkpoint, f"the checkpoint's; this processor computes in it ({native[0]})")
    return Choice("float32", f"the checkpoint is {checkpoint}, which this processor does not compute in")


def choose_kernels(config: EngineConfig) -> Choice:
    """The kernels' backend on a CPU; a name of :data:`octavo.kernels.BACKENDS`."""
    if config.kernels != "auto":
        return Choice(config.kernels, "as configured")
    return Choice("cpu", "the fastest on a CPU")
