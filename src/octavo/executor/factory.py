"""The one place that turns a configuration into an executor."""

from __future__ import annotations

from pathlib import Path

from octavo.config import EngineConfig
from octavo.executor.device import resolved
from octavo.executor.torch_executor import TorchExecutor
from octavo.hub import Progress
from octavo.plan import Executor


def create_executor(config: EngineConfig, folder: Path, progress: Progress | None = None) -> Executor:
    """The executor for ``config.device``, with the model of ``folder`` loaded; "auto" is answered here.

    Raises:
        ConfigError: there is no such device here, or the configuration does not fit the machine or the model.
        ModelError: the model cannot be used.
    """
    config = resolved(config, folder)
    if config.device == "cpu":
        return TorchExecutor(config, folder, progress)
    from octavo.executor.gpu.executor import GpuExecutor

    return GpuExecutor(config, folder, progress)
