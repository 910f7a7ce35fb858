"""What an engine would do on this machine, found out without loading the weights or changing anything."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from octavo.config import EngineConfig
from octavo.executor.backend import Backend, choose_backend
from octavo.executor.device import resolved
from octavo.executor.gpu.accelerator import Accelerator, CudaAccelerator, DeviceDescription, DeviceMemory
from octavo.executor.gpu.memory import estimated_profile, plan_gpu_memory
from octavo.executor.kv_memory import describe_kv, kv_layout
from octavo.executor.machine import Machine, default_threads
from octavo.executor.memory_plan import MemoryPlan, plan_memory
from octavo.hub import eos_token_ids, resolve_model
from octavo.kernels import BACKENDS
from octavo.model import ModelConfig, read_model_config, weights_bytes
from octavo.model.choices import LinearChoices
from octavo.model.dtypes import resolve_dtype
from octavo.model.formats import Weights, open_weights
from octavo.model.formats.choose import agreed_quantization

_PACKAGES = ("torch", "triton", "numba", "numpy", "safetensors", "tokenizers", "transformers")


@dataclass(frozen=True, slots=True)
class Gpu:
    """The device that would be computed on."""

    description: DeviceDescription
    memory: DeviceMemory  #: as it is now


@dataclass(frozen=True, slots=True)
class Report:
    """The machine, what was chosen for it, and the memory plan (sizes in bytes, lengths in tokens)."""

    machine: Machine
    python: str
    versions: tuple[tuple[str, str], ...]  #: of the packages that do the work; absent ones are left out
    threads: int
    folder: Path
    model: ModelConfig
    eos_token_ids: tuple[int, ...]
    dtype: str
    dtype_reason: str
    kv_dtype: str  #: what keys and values are stored as
    backend: Backend
    gpu: Gpu | None  #: None where a CPU computes
    memory: MemoryPlan  #: for a GPU estimated: the engine measures when it starts
    linears: tuple[tuple[str, str], ...]  #: shapes whose products were measured here before, what was chosen, and why


def inspect(config: EngineConfig, folder: Path | None = None, accelerator: Accelerator | None = None) -> Report:
    """Look at the machine and at the model's headers.

    The weights' size is an upper bound, for which of them are packed into a second copy is measured while loading.

    Args:
        config: as for the engine.
        folder: the model [``config.model``, found as the engine finds it; a hub id that is not in the cache is
            fetched].
        accelerator: the GPU [the current CUDA device, if ``config`` comes to one].

    Raises:
        ConfigError: there is no such device here; the configuration and the memory, or the model, do not go together.
        ModelError: the model cannot be used; a damaged file is found by its header.
    """
    folder = resolve_model(config.model, config.revision) if folder is None else folder
    model, stored_weights = read_model_config(folder), open_weights(folder)
    if accelerator is None:
        config = resolved(config, folder)
        accelerator = CudaAccelerator() if config.device == "cuda" else None
    machine, backend = Machine.inspect(), choose_backend(config)
    threads = config.num_threads or default_threads()
    stored = _stored_dtype(model, stored_weights)
    device = torch.device("cpu") if accelerator is None else accelerator.device
    dtype, notes = resolve_dtype(config.dtype, stored, device)
    weights = weights_bytes(model, dtype, agreed_quantization(folder, config.quantization))
    groups = model.layer_groups
    layout = kv_layout(config, model, dtype)
    gpu = None if accelerator is None else Gpu(accelerator.description, accelerator.memory())
    if gpu is None:
        plan = plan_memory(
            available_bytes=machine.available_bytes,
            weights_bytes=weights,
            page_bytes=layout.page_bytes,
            model_max_len=model.context_length,
            config=config,
            groups=groups,
        )
    else:
        plan = plan_gpu_memory(
            estimated_profile(model, dtype, config, gpu.memory, weights),
            weights_bytes=weights,
            page_bytes=layout.page_bytes,
            model_max_len=model.context_length,
            config=config,
            groups=groups,
            host_bytes=machine.available_bytes,
        )
    return Report(
        machine=machine,
        python=platform.python_version(),
        versions=tuple((name, found) for name in _PACKAGES if (found := _version(name))),
        threads=threads,
        folder=folder,
        model=model,
        eos_token_ids=eos_token_ids(folder),
        dtype=_name(dtype),
        dtype_reason=_reason(config, stored, notes, "processor" if gpu is None else "GPU"),
        kv_dtype=describe_kv(layout, dtype),
        backend=backend,
        gpu=gpu,
        memory=plan,
        linears=() if gpu is not None else _measured(backend, dtype, threads),
    )


def _measured(backend: Backend, dtype: torch.dtype, threads: int) -> tuple[tuple[str, str], ...]:
    choices = LinearChoices.here(BACKENDS[backend.name], dtype, threads).read()
    return tuple((shape, str(choice)) for shape, choice in choices.items())


def _stored_dtype(model: ModelConfig, weights: Weights) -> torch.dtype:
    if model.dtype is not None:
        dtype: torch.dtype = getattr(torch, model.dtype)
        return dtype
    name = next((name for name in weights.unread if name.endswith("embed_tokens.weight")), "lm_head.weight")
    return weights.read(name, (model.vocab_size, model.hidden_size)).dtype


def _reason(config: EngineConfig, stored: torch.dtype, notes: list[str], where: str) -> str:
    if notes:
        return "; ".join(note.removeprefix("dtype ") for note in notes)
    if config.dtype != "auto":
        return "as configured"
    return f"the checkpoint is {_name(stored)}, and this {where} computes in it"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
