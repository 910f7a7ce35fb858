"""Octavo beside vLLM, OpenVINO GenAI, llama.cpp and transformers on this CPU, workload by workload.

    python benchmarks/cpu/run.py [--peers vllm,openvino,llamacpp,transformers] [--peers-dir PATH]
        [--models smollm2-135m,qwen3-0.6b] [--precisions bf16,int8,int4] [--workloads W1,W2,W3,W4,start]
        [--repeat 3] [--out benchmarks/results/cpu.json]

Makes the models (real shapes, random weights), installs the peers in venvs of their own (once), brings the models into
their formats (once), runs the workloads (``workloads.py``) and adds what it measured to the results file, with the
tables beside it as Markdown. The whole takes an hour or two; any part of it can be run by itself, for results are
added slice by slice: a slice is one workload on one model at one precision by Octavo and the peers named, who take
turns, each in a process of its own that is stopped while another computes. The first round warms up and is dropped.

Precisions: bf16; int8 and int4 are each engine's own way (Octavo: ``quantization=``; OpenVINO: weights compressed by
``nncf``; llama.cpp: Q8_0 and Q4_0; vLLM: W8A8 of compressed-tensors, the head in bfloat16), all of them with
activations in 8 bits at run time.

Beside W1 and W4 stand what the machine would allow (W1: reading the weights once a token; W4: its matrix products
alone, each by the quickest path measured for its shape and number of rows) and where Octavo's time goes.

``start`` is the time from a process's start to the first token, the second time that it is started, and then the most
memory it held while serving W4.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cpu.peers import PEERS
from cpu.results import Results, Slice
from cpu.tables import markdown
from engine_process import EngineProcess
from machine import describe
from shapes import SHAPES, make_model
from workloads import WORKLOADS, Workload

PRECISIONS = ("bf16", "int8", "int4")
OCTAVO: dict[str, dict[str, Any]] = {"bf16": {}, "int8": {"quantization": "int8"}, "int4": {"quantization": "int4"}}
LIMITS = {"dtype": "bfloat16", "max_num_seqs": 32, "max_model_len": 1024, "kv_tokens": 32 * 400}
"""The same for every engine that can be told."""


LIMITED = ("W1", "W4")
"""Workloads whose limits are measured too: the first is bound by memory, the last by matrix products."""


@dataclass(frozen=True, slots=True)
class Contender:
    """An engine that can be started on a model at a precision."""

    name: str
    python: str
    model: Path
    options: dict[str, Any]

    @contextmanager
    def started(self, scratch: Path) -> Iterator[EngineProcess]:
        """It, running; ended at the end."""
        threads = str(self.options["num_threads"])
        log = scratch / f"{self.name}.log"
        print(f"  starting {self.name}", file=sys.stderr)
        # vLLM binds threads by itself, and warns where it is told how many torch may have.
        told = None if self.name == "vllm" else threads
        environment = {"OMP_NUM_THREADS": told, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
        engine = EngineProcess(self.name, self.python, self.model, self.options, log, environment)
        try:
            yield engine
        finally:
            engine.close()


def contenders(model: Path, precision: str, peers: list[str], folders: dict[str, Path]) -> list[Contender]:
    """Octavo, and those of the peers that have the precision."""
    common = {**LIMITS, "num_threads": len(os.sched_getaffinity(0))}
    found = [Contender("octavo", sys.executable, model, {**common, **OCTAVO[precision]})]
    for name in peers:
        peer, folder = PEERS[name], folders[name]
        if precision in peer.precisions:
            options = {**common, **peer.options(precision, folder)}
            found.append(Contender(name, peer.python(folder), peer.model(model, precision, folder), options))
    return found


def measure(engines: list[EngineProcess], load: Workload, vocab_size: int, repeat: int) -> dict[str, dict[str, Any]]:
    """The workload on every engine, in turns."""
    prefill = load.prefill()
    found: dict[str, dict[str, Any]] = {}
    for engine in engines:
        found[engine.name] = {"samples": {}, "versions": engine.versions, "load_seconds": engine.load_seconds}
    for turn in range(repeat + 1):
        # to warm up, half of many requests will do
        now = load if turn or len(load.prompts) <= LIMITS["max_num_seqs"] else load.scaled(0.5)
        for engine in engines:
            first = engine.run(prefill.draw(vocab_size, turn))["seconds"] if prefill else 0.0
            report = engine.run(now.draw(vocab_size, turn))
            if report["tokens"] != sum(now.outputs):
                raise SystemExit(f"{engine.name} generated {report['tokens']} tokens of {sum(now.outputs)}")
            figures = now.figures(report["seconds"], first)
            said = ", ".join(f"{name} {value:,.2f}" for name, value in figures.items())
            print(f"    {turn}/{repeat} {engine.name:<12} {load.name}: {said}", file=sys.stderr, flush=True)
            entry = found[engine.name]
            entry["first_tokens"] = report["first"]
            entry["peak_gib"] = engine.peak_bytes() / 2**30
            if turn:
                for name, value in figures.items():
                    entry["samples"].setdefault(name, []).append(value)
    return found


def start(contender: Contender, vocab_size: int, repeat: int, scratch: Path) -> dict[str, Any]:
    """Seconds from a process's start to its first token, and the most memory that it held while it served W4."""
    prompt = WORKLOADS["W1"].scaled(1).draw(vocab_size, "start")
    request = {"prompts": [prompt["prompts"][0][:16]], "outputs": [1]}
    times, peaks, versions = [], [], {}
    for turn in range(repeat + 1):
        began = time.perf_counter()
        with contender.started(scratch) as engine:
            engine.run(request)
            seconds = time.perf_counter() - began
            print(f"    {turn}/{repeat} {contender.name:<12} first token after {seconds:.2f} s", file=sys.stderr)
            versions = engine.versions
            if turn:
                times.append(seconds)
            if turn == repeat:
                engine.run(WORKLOADS["W4"].draw(vocab_size, "start"))
                peaks.append(engine.peak_bytes() / 2**30)
    return {"samples": {"first_token_seconds": times, "peak_gib": peaks}, "versions": versions}


def slices(options: argparse.Namespace, folders: dict[str, Path]) -> Iterator[Slice]:
    """Measure what was asked for."""
    for name in options.models:
        model = options.models_dir / name
        if not (model / "model.safetensors").exists():
            print(f"  making {model}", file=sys.stderr)
            make_model(name, model)
        for precision in options.precisions:
            engines = contenders(model, precision, options.peers, folders)
            if not options.set_up_only:
                yield from _slices_at(name, precision, engines, options)


def _slices_at(name: str, precision: str, engines: list[Contender], options: argparse.Namespace) -> Iterator[Slice]:
    """The workloads on one model at one precision: the engines are started once for all of them."""
    vocab_size = SHAPES[name][1]["vocab_size"]

    def cut(workload: str, found: dict[str, dict[str, Any]], roofline: dict[str, Any] | None = None) -> Slice:
        when = datetime.now(UTC).strftime("%Y-%m-%d %H:%M")
        scale = options.scale if workload in WORKLOADS else 1.0
        return Slice(name, precision, workload, when, scale, found, roofline or {})

    print(f"{name}, {precision}", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        scratch = Path(folder)
        if "start" in options.workloads:
            yield cut("start", {each.name: start(each, vocab_size, options.repeat, scratch) for each in engines})
        loads = [WORKLOADS[each].scaled(options.scale) for each in options.workloads if each in WORKLOADS]
        running = [stack.enter_context(each.started(scratch)) for each in engines if loads]
        for load in loads:
            found = measure(running, load, vocab_size, options.repeat)
            roofline = {}
            if options.limits and load.name in LIMITED:
                with replace(engines[0], name="limits").started(scratch) as limits:
                    roofline = limits.run(load.draw(vocab_size, "limits"))
            yield cut(load.name, found, roofline)


def arguments() -> argparse.Namespace:
    """The command line, read."""

    def listed(known: list[str]) -> Any:
        def read(text: str) -> list[str]:
            names = [name for name in text.split(",") if name]
            unknown = [name for name in names if name not in known]
            if unknown:
                raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; known: {', '.join(known)}")
            return names

        return read

    home = Path.home() / ".cache" / "octavo-benchmarks"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--models", type=listed(list(SHAPES)), default=["smollm2-135m", "qwen3-0.6b"])
    add("--precisions", type=listed(list(PRECISIONS)), default=list(PRECISIONS))
    add("--workloads", type=listed([*WORKLOADS, "start"]), default=[*WORKLOADS, "start"])
    add("--peers", type=listed(list(PEERS)), default=list(PEERS), help="'' runs Octavo alone")
    add("--peers-dir", type=Path, default=home / "peers", help="where their venvs are, or are to be made")
    add("--models-dir", type=Path, default=home / "models", help="where the models are, or are to be made")
    add("--repeat", type=int, default=3, help="rounds that count")
    add("--scale", type=float, default=1.0, help="of the number of requests, for a quick look")
    add("--out", type=Path, default=Path(__file__).parents[1] / "results" / "cpu.json")
    add("--no-limits", dest="limits", action="store_false", help="no rooflines and no profile beside W1 and W4")
    add("--set-up-only", action="store_true", help="install and convert, measure nothing")
    add("--tables-only", action="store_true", help="write the tables of what has been measured")
    options = parser.parse_args()
    if options.repeat < 1 or not 0 < options.scale <= 1:
        parser.error("--repeat must be at least 1, --scale above 0 and at most 1")
    options.peers_dir, options.models_dir = options.peers_dir.resolve(), options.models_dir.resolve()
    return options


def main() -> None:
    """Measure, add to the file, print."""
    # So that engines are ended too, the stopped ones as well, when this process is told to end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
    options = arguments()
    results = Results.read(options.out, describe())
    if not options.tables_only:
        folders = {name: PEERS[name].set_up(options.peers_dir) for name in options.peers}
        for found in slices(options, folders):
            results.add(found)
            results.write(options.out)
    if results.slices:
        text = markdown(results)
        options.out.with_suffix(".md").write_text(text)
        print(text)


if __name__ == "__main__":
    main()
