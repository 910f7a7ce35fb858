"""Triton kernels compiled for GPUs that are not here. A process of its own (``make test-triton``), since an interpreted
kernel cannot be compiled."""

from __future__ import annotations

import os
from importlib.util import find_spec

found = find_spec("triton")
collect_ignore_glob = ["*"] if found is None or found.origin is None else []

if os.environ.get("TRITON_INTERPRET"):
    raise RuntimeError("TRITON_INTERPRET is set (tests/triton sets it): run these tests by themselves")
