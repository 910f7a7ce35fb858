"""Triton kernels in Triton's interpreter, on the CPU. A process of its own (``make test-triton``): whether a kernel is
interpreted is settled when triton is first imported."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from interpreter import install

found = find_spec("triton")
collect_ignore_glob = ["*"] if found is None or found.origin is None else []

if not collect_ignore_glob:
    install()
torch.set_num_threads(1)


def pytest_configure(config: pytest.Config) -> None:
    """numpy warns of infinities and NaN, which kernels may make."""
    config.addinivalue_line("filterwarnings", "ignore:::triton.runtime.interpreter")
