"""The GPU benchmark on a machine without one: the reference kernels on tiny shapes, and the tables."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu" / "run.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, timeout=300)


def test_every_kernel_is_measured_and_parts_are_added(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    common = ("--device", "cpu", "--tiny", "--out", str(out))
    first = run(*common, "--parts", "norm,rope")
    assert first.returncode == 0, first.stderr
    second = run(*common, "--parts", "activation,decode,prefill,sampling")
    assert second.returncode == 0, second.stderr

    data: dict[str, Any] = json.loads(out.read_text())
    kernels = {each["kernel"] for each in data["kernels"]}
    assert {"RMSNorm", "add + RMSNorm", "RoPE", "RoPE + KV write", "SwiGLU"} <= kernels
    assert {"paged decode attention", "paged prefill attention", "sampling", "sampling, top-p 0.95"} <= kernels
    assert all("octavo" in each["seconds"] and not each["missing"] for each in data["kernels"])
    tables = out.with_suffix(".md").read_text()
    assert second.stdout.strip() == tables.strip()
    assert "### paged decode attention" in tables
    assert "no GPU" in tables


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--device", "cpu"), "needs --tiny"),
        (("--device", "cpu", "--tiny", "--parts", "norms"), "unknown: norms"),
    ],
)
def test_what_cannot_be_done_is_said(arguments: tuple[str, ...], says: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert says in done.stderr


def test_another_devices_figures_are_not_mixed(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    out.write_text(json.dumps({"device": {"name": "another"}, "kernels": []}))
    done = run("--device", "cpu", "--tiny", "--out", str(out), "--parts", "norm")
    assert done.returncode == 1
    assert "give another --out" in done.stderr


def test_the_floor_of_a_step_is_its_weights_and_its_keys() -> None:
    from gpu.ceilings import Ceilings
    from gpu.engines import step_floor
    from workloads import GPU_WORKLOADS

    ceilings = Ceilings(copy=3.0e12, read=3.0e12, matmul=8e14)
    # the published floors of Qwen3-0.6B at 3.0 TB/s: 0.417 ms for one sequence of 512, 10.4 ms for 256 of 1,024
    assert step_floor("qwen3-0.6b", GPU_WORKLOADS["one"], ceilings) == pytest.approx(0.417e-3, rel=0.02)
    assert step_floor("qwen3-0.6b", GPU_WORKLOADS["many"], ceilings) == pytest.approx(10.4e-3, rel=0.02)
