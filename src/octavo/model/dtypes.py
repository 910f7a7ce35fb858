"""Which number format to compute in."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.nn import functional as F

from octavo.errors import ConfigError

_NAMES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_NATIVE = {
    torch.bfloat16: {"avx512_bf16", "amx_bf16", "bf16"},  # the last is ARM's name
    torch.float16: {"avx512_fp16", "asimdhp"},
}
"""CPU flags of which one suffices to multiply in a dtype at speed."""


def resolve_dtype(asked: str, stored: torch.dtype, device: torch.device) -> tuple[torch.dtype, list[str]]:
    """The dtype to compute in, and a line for a person wherever it is not simply the checkpoint's.

    "auto" takes the checkpoint's where the machine computes in it at speed. A CPU without instructions for it would
    convert at every step: there "auto" means float32, which holds every bfloat16 and float16 weight exactly, at twice
    the memory. A dtype named outright is used as named.

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
        if device.type == "cpu" and not cpu_computes(dtype):
            return dtype, [f"dtype {asked}: this CPU has no instructions for it; float32 may be faster"]
        return dtype, []
    if device.type != "cpu" or cpu_computes(stored):
        return stored, []
    name = str(stored).removeprefix("torch.")
    return torch.float32, [f"dtype float32: the checkpoint is {name}, which this CPU has no instructions for"]


def cpu_computes(dtype: torch.dtype, cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the CPU multiplies in a dtype by itself. Where the system does not say, oneDNN is asked."""
    if dtype == torch.float32:
        return True
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return _onednn_computes(dtype)
    for line in lines:
        name, _, flags = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return not _NATIVE[dtype].isdisjoint(flags.split())
    return False


def _onednn_computes(dtype: torch.dtype) -> bool:
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    operators = torch.ops.mkldnn
    ask = operators._is_mkldnn_bf16_supported if dtype == torch.bfloat16 else operators._is_mkldnn_fp16_supported
    return bool(ask())


def _multiplies(dtype: torch.dtype, device: torch.device) -> bool:
    try:
        result = F.linear(torch.ones(2, 8, dtype=dtype, device=device), torch.ones(4, 8, dtype=dtype, device=device))
    except (RuntimeError, NotImplementedError):
        return False
    return bool((result == 8).all())
