"""Octavo's kernels and engine on one NVIDIA GPU, beside eager PyTorch, PyTorch's fused operators, FA3 and vLLM.

    python benchmarks/gpu/run.py [--parts norm,activation,rope,decode,prefill,sampling,engines]
        [--vllm-python PYTHON] [--models-dir PATH] [--out benchmarks/results/gpu.json]

Measures first what the device attains at a copy, a sum and a matrix product, then each kernel at real shapes (in CUDA
graphs, rotating among inputs larger than the cache together; median, least and most of rounds), then whole engines
(a model of Qwen3-0.6B's shape with random weights): decode steps beside the time that reading weights and keys takes,
nano-vllm's workload, continuous beside static batching, host time a step, the GPU's idle share and the use of KV
memory. Parts are added to the results file, with the tables beside it as Markdown: so the whole, which takes some
fifteen minutes, can be had in pieces.

vLLM is measured where it can be imported (its kernels) and where ``--vllm-python`` names an interpreter that has it
(the engine). Its release for the torch at hand is a matter of the machine: 0.25.1 goes with torch 2.11.

Without a GPU, ``--device cpu --tiny`` runs the reference kernels on tiny shapes, to see that the script works: its
figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from gpu.cases import measure_all
from gpu.ceilings import measure_ceilings
from gpu.engines import Plan, measure_engines, step_floor
from gpu.kernels import FAMILIES, Bench
from gpu.peers import load_vllm
from gpu.tables import markdown
from gpu.timing import CudaClock, HostClock
from shapes import make_model

from octavo import kernels

PARTS = (*FAMILIES, "engines")


def describe(device: torch.device) -> dict[str, Any]:
    """What the figures were measured on."""
    versions = {"torch": torch.__version__, "cuda": torch.version.cuda, "python": platform.python_version()}
    if device.type == "cpu":
        return {"name": "no GPU: reference kernels on a CPU", "memory_gib": 0, "triton": None, **versions}
    import triton

    found = torch.cuda.get_device_properties(device)
    return {
        "name": found.name,
        "memory_gib": round(found.total_memory / 2**30, 1),
        "capability": f"{found.major}.{found.minor}",
        "processors": found.multi_processor_count,
        "triton": triton.__version__,
        **versions,
    }


def read(file: Path, device: dict[str, Any]) -> dict[str, Any]:
    """What the file has, to be added to.

    Raises:
        SystemExit: its figures are another device's.
    """
    empty = {"device": device, "kernels": [], "engines": [], "floors": {}, "model": "", "vllm": ""}
    if not file.exists():
        return empty
    data = dict(json.loads(file.read_text()))
    if data["device"] != device:
        raise SystemExit(f"{file} was measured on {data['device']}, this is {device}: give another --out")
    return data


def write(file: Path, data: dict[str, Any]) -> None:
    """Save figures and tables, all or nothing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    for path, text in ((file, json.dumps(data, indent=1) + "\n"), (file.with_suffix(".md"), markdown(data))):
        partial = path.with_suffix(".partial")
        partial.write_text(text)
        partial.replace(path)


def arguments() -> argparse.Namespace:
    """The command line, read."""

    def parts(text: str) -> list[str]:
        names = [name for name in text.split(",") if name]
        unknown = [name for name in names if name not in PARTS]
        if unknown:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; known: {', '.join(PARTS)}")
        return names

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--parts", type=parts, default=list(PARTS))
    add("--device", choices=("cuda", "cpu"), default="cuda")
    add("--tiny", action="store_true", help="tiny shapes: no figures, only a look at whether everything runs")
    add("--model", default="qwen3-0.6b", help="shape of the engines' model")
    add("--models-dir", type=Path, default=Path.home() / ".cache" / "octavo-benchmarks" / "models")
    add("--vllm-python", help="an interpreter with vLLM: measures its engine too")
    add("--repeat", type=int, default=3, help="rounds of the engines that count")
    add("--out", type=Path, default=Path(__file__).parents[1] / "results" / "gpu.json")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no GPU: for a look at whether the script runs, say --device cpu --tiny")
    if options.device == "cpu" and not options.tiny:
        parser.error("--device cpu needs --tiny: real shapes take hours without a GPU")
    return options


def main() -> None:
    """Measure, add to the file, print."""
    options = arguments()
    device = torch.device(options.device)
    on_gpu = device.type == "cuda"
    data = read(options.out, describe(device))
    clock = CudaClock() if on_gpu else HostClock()
    ceilings = measure_ceilings(clock, device, tiny=options.tiny)
    vllm, data["vllm"] = load_vllm() if on_gpu else (None, "no GPU")
    data["when"], data["ceilings"] = datetime.now(UTC).strftime("%Y-%m-%d %H:%M"), asdict(ceilings)
    bench = Bench(device, kernels.load("triton" if on_gpu else "reference"), vllm, options.tiny)
    for part in options.parts:
        if part == "engines":
            continue
        for found in measure_all(FAMILIES[part](bench), clock, device):
            said = ", ".join(f"{name} {timing.median * 1e6:,.1f} us" for name, timing in found.seconds.items())
            print(f"  {found.kernel}, {found.shape}: {said}", file=sys.stderr, flush=True)
            place = (found.kernel, found.shape)
            kept = [each for each in data["kernels"] if (each["kernel"], each["shape"]) != place]
            data["kernels"] = [*kept, asdict(found)]
        write(options.out, data)
    if "engines" in options.parts:
        model = options.models_dir / options.model
        if not (model / "model.safetensors").exists():
            make_model(options.model, model)
        plan = Plan(model, options.model, options.device, options.vllm_python, options.repeat)
        data["model"] = options.model
        data["engines"] = [asdict(each) for each in measure_engines(plan)]
        steps = [load for load in plan.loads() if load.prefill()]
        data["floors"] = {load.name: step_floor(options.model, load, ceilings) for load in steps}
        write(options.out, data)
    print(markdown(data))


if __name__ == "__main__":
    main()
