"""What the tests of GGUF files share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def source(checkpoint: Callable[..., Path]) -> Path:
    """A Llama whose matrices have 64 and 128 inputs."""
    return checkpoint("llama", hidden_size=64, intermediate_size=128, num_attention_heads=4)
