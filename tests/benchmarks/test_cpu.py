"""The CPU benchmark's bookkeeping, and one run of it on a tiny model, without peers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
MACHINE = {"cpu": "a processor", "flags": "avx2", "cores": 2, "memory_gib": 8.0, "system": "Linux"}


def a_slice(workload: str = "W4", when: str = "2026-01-01 10:00", **rates: list[float]) -> Any:
    from cpu.results import Slice

    engines = {name: {"samples": {"output_tokens_per_second": values}} for name, values in rates.items()}
    return Slice("tiny", "bf16", workload, when, 1.0, engines)


def test_workloads_are_those_of_the_tables() -> None:
    from workloads import WORKLOADS

    w1, w2, w3, w4 = (WORKLOADS[name] for name in ("W1", "W2", "W3", "W4"))
    assert (w1.prompts, w1.outputs) == ((128,), (128,))
    assert (len(w2.prompts), set(w2.outputs)) == (16, {64})
    assert 128 <= min(w2.prompts) <= max(w2.prompts) <= 256
    assert (w3.prefix, w3.prompts, w3.outputs) == (512, (32,) * 16, (32,) * 16)
    assert (len(w4.prompts), len(w4.outputs)) == (64, 64)
    assert 16 <= min(w4.prompts) <= max(w4.prompts) <= 256
    assert 16 <= min(w4.outputs) <= max(w4.outputs) <= 128


def test_every_run_has_tokens_of_its_own_and_every_engine_the_same() -> None:
    from workloads import WORKLOADS

    load = WORKLOADS["W3"]
    one, again, other = load.draw(1000, 1), load.draw(1000, 1), load.draw(1000, 2)
    assert one == again
    assert one["prompts"] != other["prompts"]
    assert len({tuple(prompt[:512]) for prompt in one["prompts"]}) == 1
    assert len({tuple(prompt) for prompt in one["prompts"]}) == 16
    assert all(1 <= token < 1000 for prompt in one["prompts"] for token in prompt)


def test_figures() -> None:
    from workloads import WORKLOADS

    found = WORKLOADS["W1"].figures(3.0, 1.0)
    assert found == {"prefill_tokens_per_second": 128.0, "decode_tokens_per_second": 63.5}
    assert WORKLOADS["W3"].figures(2.5, 0.0) == {"wall_seconds": 2.5}
    w4 = WORKLOADS["W4"]
    assert w4.figures(10.0, 0.0) == {"output_tokens_per_second": sum(w4.outputs) / 10}
    assert w4.prefill() is None
    assert WORKLOADS["W2"].prefill().outputs == (1,) * 16
    assert len(w4.scaled(0.1).prompts) == 6
    assert len(WORKLOADS["W1"].scaled(0.1).prompts) == 1


def test_slices_merge_into_one_file(tmp_path: Path) -> None:
    from cpu.results import Results

    file = tmp_path / "out.json"
    results = Results.read(file, MACHINE)
    results.add(a_slice(octavo=[100.0], vllm=[50.0]))
    results.add(a_slice("W1", octavo=[7.0]))
    results.add(a_slice(octavo=[120.0], openvino=[80.0]))
    assert len(results.slices) == 3  # vLLM was not measured again
    results.write(file)
    read = Results.read(file, MACHINE)
    assert read == results
    read.add(a_slice(octavo=[110.0], openvino=[90.0], vllm=[60.0]))
    assert [each.workload for each in read.slices] == ["W1", "W4"]
    with pytest.raises(SystemExit, match="give another --out"):
        Results.read(file, {**MACHINE, "cores": 64})


def test_a_ratio_stays_within_its_slice() -> None:
    from cpu.results import Results
    from cpu.tables import markdown

    results = Results(MACHINE, [])
    results.add(a_slice(octavo=[100.0, 110.0, 90.0], vllm=[50.0, 40.0, 60.0]))
    results.add(a_slice(octavo=[200.0], openvino=[80.0]))
    row = next(line for line in markdown(results).splitlines() if line.startswith("| W4"))
    assert "105 (90.0-200)" in row
    assert "50.0 (40.0-60.0) **2.00x**" in row
    assert "80.0 (80.0-80.0) **2.50x**" in row


def test_less_is_better_of_seconds() -> None:
    from cpu.results import Results, Slice
    from cpu.tables import markdown

    engines = {"octavo": {"samples": {"wall_seconds": [2.0]}}, "vllm": {"samples": {"wall_seconds": [5.0]}}}
    results = Results(MACHINE, [Slice("tiny", "bf16", "W3", "2026-01-01 10:00", 1.0, engines)])
    assert "5.00 (5.00-5.00) **2.50x**" in markdown(results)


def test_a_run_without_peers(tmp_path: Path) -> None:
    out = tmp_path / "cpu.json"
    command = "--peers= --models tiny --precisions bf16 --workloads W1,W4 --scale 0.05 --repeat 1"
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "cpu" / "run.py"), *command.split(), "--no-limits",
         "--models-dir", str(tmp_path / "models"), "--out", str(out)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    w1, w4 = json.loads(out.read_text())["slices"]
    assert (w1["workload"], w4["workload"]) == ("W1", "W4")
    assert w1["engines"]["octavo"]["samples"].keys() == {"prefill_tokens_per_second", "decode_tokens_per_second"}
    assert w4["engines"]["octavo"]["samples"]["output_tokens_per_second"][0] > 0
    assert w4["engines"]["octavo"]["peak_gib"] > 0
    assert "| W4 (0.05 of the requests) output tokens/s |" in done.stdout
    assert out.with_suffix(".md").read_text().strip() == done.stdout.strip()
