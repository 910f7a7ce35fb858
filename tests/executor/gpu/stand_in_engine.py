"""Engines whose executor runs on the stand-in for a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from executor.gpu.stand_in import StandIn

from octavo import EngineConfig, LLMEngine
from octavo.executor.gpu.executor import GpuExecutor
from octavo.hub import resolve_model
from octavo.kernels import load


def stand_in_executor(
    config: EngineConfig, folder: Path, device: StandIn | None = None, kernels: str = "reference"
) -> GpuExecutor:
    """The GPU's executor over the stand-in, with a backend of :mod:`octavo.kernels`."""
    device = device or StandIn()
    return GpuExecutor(config, folder, accelerator=device, kernels=device.kernels(load(kernels)))


def stand_in_engine(config: EngineConfig, device: StandIn | None = None, kernels: str = "reference") -> LLMEngine:
    """An engine over it."""
    folder = resolve_model(config.model, config.revision, None)
    return LLMEngine(config, executor=stand_in_executor(config, folder, device, kernels))


def settings_of(**changes: Any) -> dict[str, Any]:
    """Of engines whose results are compared bit by bit."""
    return {
        "dtype": "float32",
        "kernels": "reference",
        "block_size": 4,
        "num_blocks": 400,
        "max_num_seqs": 24,
        "max_num_batched_tokens": 96,  # so much is tried at every start
        "batch_invariant": True,
        "linear_kind": "plain",  # what graphs capture are operations on plain tensors
        "num_threads": 1,
    } | changes
