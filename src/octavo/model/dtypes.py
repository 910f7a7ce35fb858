"""Which number format to compute in."""

from __future__ import annotations

import platform
from pathlib import Path

import torch
from torch.nn import functional as F

from octavo.errors import ConfigError

_NAMES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # "bf16" is ARM's name


def resolve_dtype(asked: str, stored: torch.dtype, device: torch.device) -> tuple[torch.dtype, list[str]]:
    """The dtype to compute in, and a line for a person wherever it is not simply the checkpoint's.

    "auto" takes the checkpoint's where the machine computes in it at speed. A CPU without bfloat16 instructions
    converts at every step, and float16 products are slow on nearly every CPU: there "auto" means float32, which holds
    every bfloat16 and float16 weight exactly, at twice the memory. A dtype named outright is used as named.

    Args:
        asked: "auto", "float32", "bfloat16" or "float16".
        stored: the checkpoint's.
        device: where the model will run.

    Raises:
        ConfigError: ``asked`` is unknown, or this machine's PyTorch cannot multiply in it.
    """
    if asked != "auto":
        if asked not in _NAMES:
            raise ConfigError(f"dtype={asked!r} is unknown: use auto, {', '.join(_NAMES)}")
        dtype = _NAMES[asked]
        if not _multiplies(dtype, device):
            raise ConfigError(f"dtype={asked!r} cannot be computed on {device} here: use dtype='float32'")
        slow = device.type == "cpu" and dtype != torch.float32 and not (dtype == torch.bfloat16 and cpu_has_bfloat16())
        return dtype, [f"dtype {asked}: this CPU has no fast {asked} products; float32 may be faster"] if slow else []
    if device.type != "cpu" or stored == torch.float32:
        return stored, []
    if stored == torch.bfloat16:
        if cpu_has_bfloat16():
            return stored, []
        return torch.float32, ["dtype float32: the checkpoint is bfloat16, which this CPU has no instructions for"]
    faster = "; dtype='bfloat16' is faster here and rounds the weights" if cpu_has_bfloat16() else ""
    return torch.float32, [f"dtype float32: the checkpoint is float16, which is slow on CPUs{faster}"]


def cpu_has_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the CPU multiplies bfloat16 by itself (AVX512_BF16, AMX, or ARM's BF16)."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return platform.machine() == "arm64" and platform.system() == "Darwin" and _mkldnn_has_bfloat16()
    for line in lines:
        name, _, flags = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return not _BFLOAT16_FLAGS.isdisjoint(flags.split())
    return False


def _mkldnn_has_bfloat16() -> bool:
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return available and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _multiplies(dtype: torch.dtype, device: torch.device) -> bool:
    try:
        result = F.linear(torch.ones(2, 8, dtype=dtype, device=device), torch.ones(4, 8, dtype=dtype, device=device))
    except (RuntimeError, NotImplementedError):
        return False
    return bool((result == 8).all())
