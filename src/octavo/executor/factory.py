"""The one place that turns a configuration into an executor."""

from __future__ import annotations

from pathlib import Path

from octavo.config import EngineConfig
from octavo.errors import ConfigError
from octavo.executor.torch_executor import TorchExecutor
from octavo.hub import Progress
from octavo.plan import Executor


def create_executor(config: EngineConfig, folder: Path, progress: Progress | None = None) -> Executor:
    """The executor for ``config.device``, with the model of ``folder`` loaded.

    Raises:
        ConfigError: no executor for this device, or the configuration does not fit the machine or the model.
        ModelError: the model cannot be used.
    """
    if config.device in ("auto", "cpu"):
        return TorchExecutor(config, folder, progress)
    raise ConfigError(f"device={config.device!r} has no executor: use cpu")
