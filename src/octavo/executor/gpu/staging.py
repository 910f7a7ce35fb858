"""Small arrays on their way from the host to the device."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


def stage(array: NDArray[Any], device: torch.device) -> torch.Tensor:
    """A copy on the device, queued on the current stream: the host does not wait.

    The page-locked memory between is of PyTorch's own cache, which hands it out again only after the copy is done.
    """
    host = torch.from_numpy(np.ascontiguousarray(array))
    if device.type == "cpu":
        return host.clone()
    return host.pin_memory().to(device, non_blocking=True)
