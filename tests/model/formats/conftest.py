"""What the tests of formats share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from paged_runner import PagedRunner

from octavo import kernels
from octavo.model import load_model

PROMPT = list(range(5, 45))


@pytest.fixture(scope="session")
def source(checkpoint: Callable[..., Path]) -> Path:
    """A Llama whose matrices have 64 and 128 inputs."""
    return checkpoint("llama", hidden_size=64, intermediate_size=128, num_attention_heads=4)


@pytest.fixture(scope="session")
def logits() -> Callable[[Path], torch.Tensor]:
    """A model's logits for a prompt, computed in float32."""

    def get(folder: Path, kernel: str = "reference") -> torch.Tensor:
        decoder = load_model(folder, dtype="float32", kernels=kernels.load(kernel))
        return PagedRunner(decoder).run({0: PROMPT})

    return get
