"""Fixtures that several packages' tests share: small checkpoints, written once a session."""

from __future__ import annotations

import os
import signal

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # A test run that a shell put into the background inherits this; there Ctrl-C could not be tested.
    signal.signal(signal.SIGINT, signal.default_int_handler)

if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers share the cores. Threads that spin at a barrier while another worker holds their core make every small
    # product wait for a time slice, a hundred times its own length.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from checkpoints import make_checkpoint
from hypothesis import HealthCheck, settings

# Nothing may fail because the machine is busy; and in CI a change, not the dice, decides whether a test passes.
settings.register_profile("octavo", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("octavo"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "octavo")


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """torch on one thread: matrices as small as these tests' are multiplied sooner by one than shared out."""
    import torch

    count = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(count)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``checkpoint(family, **overrides)``: the folder of such a checkpoint, made when first asked for."""
    made: dict[str, Path] = {}

    def get(family: str = "llama", **overrides: Any) -> Path:
        key = repr((family, sorted(overrides.items())))
        if key not in made:
            made[key] = make_checkpoint(tmp_path_factory.mktemp(family), family, **overrides)
        return made[key]

    return get


@pytest.fixture(scope="session")
def tiny_llama(checkpoint: Callable[..., Path]) -> Path:
    """A Llama of two layers (hidden 96, 6 heads over 2, head_dim 16, 384 tokens, context 512), float32."""
    return checkpoint("llama")


@pytest.fixture(scope="session")
def tiny_qwen3(checkpoint: Callable[..., Path]) -> Path:
    """A Qwen3 of two layers, with tied embeddings and head_dim 24 unlike hidden / heads, float32."""
    return checkpoint("qwen3", head_dim=24, tie_word_embeddings=True)
