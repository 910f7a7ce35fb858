"""How kernels are launched: what the launch tables are keyed by."""

from __future__ import annotations

import torch

INTERPRETED = 90
"""The architecture whose launch shapes are taken where there is no GPU: in Triton's interpreter."""

_ARCHITECTURES: dict[torch.device, int] = {}


def architecture(device: torch.device) -> int:
    """A device's compute capability as one number: 80 (A100), 86, 89 (Ada), 90 (H100), 100 ..."""
    known = _ARCHITECTURES.get(device)
    if known is None:
        known = INTERPRETED
        if device.type == "cuda":
            major, minor = torch.cuda.get_device_capability(device)
            known = 10 * major + minor
        _ARCHITECTURES[device] = known
    return known
