"""Where to compute: a configuration's ``device``, ``kernels`` and ``depth``, as this machine answers them."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import torch

from octavo.config import GPU_KERNELS, EngineConfig
from octavo.errors import ConfigError
from octavo.model.formats.choose import agreed_quantization, quantization_settings


def resolved(config: EngineConfig, folder: Path) -> EngineConfig:
    """The configuration with a ``device`` and a ``depth`` that are no longer open.

    "auto" is the GPU where PyTorch sees one, Triton is installed, the weights are not in few bits, and every other
    field asks for what a GPU serves. No step waits for Python on a GPU, so there the next plan is made while one runs
    (``depth`` 1); on a CPU both would want the same cores.

    Args:
        config: the engine's.
        folder: the model.

    Raises:
        ConfigError: a GPU is asked for, and there is none, or no Triton to compute with on it.
        UnsupportedModelError: what config.json says of quantisation cannot be understood.
    """
    wants = config.device == "cuda" or (config.device == "auto" and config.kernels == "triton")
    lacks = _lacks()
    if wants and lacks is not None:
        raise ConfigError(f"{_asked(config)} but {lacks}")
    if config.device == "auto" and not wants:
        wants = lacks is None and config.kernels in GPU_KERNELS and not config.cpu_only() and _is_in_full(folder)
    depth = int(wants) if config.depth is None else config.depth
    return replace(config, device="cuda" if wants else "cpu", depth=depth)


def _is_in_full(folder: Path) -> bool:
    return quantization_settings(folder) is None and agreed_quantization(folder, None) is None


def _asked(config: EngineConfig) -> str:
    return "device='cuda'" if config.device == "cuda" else "kernels='triton'"


def _lacks() -> str | None:
    """What this machine lacks to compute on a GPU, in words; None where it has it all."""
    if torch.version.cuda is None:
        return f"PyTorch {torch.__version__} is built without CUDA: install a CUDA build of it, or use device='cpu'"
    if not torch.cuda.is_available():
        return (
            f"PyTorch {torch.__version__} (CUDA {torch.version.cuda}) sees no GPU: check nvidia-smi and "
            "CUDA_VISIBLE_DEVICES, or use device='cpu'"
        )
    if find_spec("triton") is None:
        return "Triton is not installed: pip install 'octavo[gpu]', or use device='cpu'"
    major, minor = torch.cuda.get_device_capability()
    if major < 8:
        name = torch.cuda.get_device_name()
        return f"{name} has compute capability {major}.{minor}, and the kernels need 8.0 or later: use device='cpu'"
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "Triton finds no C compiler to make its launchers with: install gcc, or set CC, or use device='cpu'"
    return None
