"""``octavo bench``: how fast a model is on this machine, and how fast it could be."""

from __future__ import annotations

import importlib
import json
import statistics
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from octavo.cli.options import engine_options
from octavo.cli.terminal import LoadProgress, console
from octavo.config import EngineConfig
from octavo.hub import resolve_model

if TYPE_CHECKING:
    from octavo.engine.speed import Measured, Speed


@engine_options()
def bench(
    config: EngineConfig,
    concurrency: Annotated[int, typer.Option("--concurrency", "-c", help="Requests at once, beside one alone.")] = 16,
    prompt_tokens: Annotated[int, typer.Option(help="Tokens of each prompt.")] = 128,
    output_tokens: Annotated[int, typer.Option(help="Tokens generated for each.")] = 128,
    rounds: Annotated[int, typer.Option(help="Rounds that count; one more warms up.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything measured as one JSON object.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")] = False,
) -> None:
    """Measure tokens a second, one stream and many at once, and what share that is of what this machine allows.

    The machine's own limits are measured in the same run: how fast memory is read, and how fast the model's matrix
    products are where they are fastest.
    """
    from octavo.engine import LLMEngine
    from octavo.engine.speed import Load, measure

    load = Load(concurrency, prompt_tokens, output_tokens, rounds)
    began = time.perf_counter()
    with LoadProgress(quiet) as progress:
        folder = resolve_model(config.model, config.revision, progress)
        # By name: it stands on torch's side, which is imported only here.
        executor = importlib.import_module("octavo.executor.factory").create_executor(config, folder, progress)
        engine = LLMEngine(config, executor=executor)
    seconds = time.perf_counter() - began
    with engine, LoadProgress(quiet) as progress:
        load.check(engine)
        progress("measuring the machine", 0, 0)
        roofline = importlib.import_module("octavo.executor.roofline").measure(executor)
        measured = measure(engine, load, lambda done, total: progress("measuring rounds", done, total))
        dtype = str(executor.decoder.dtype).removeprefix("torch.")
        report = _report(engine, measured, roofline, dtype, seconds)
    if as_json:
        print(json.dumps(report, default=str))
    else:
        _show(report)


def _report(engine: Any, measured: Measured, roofline: Any, dtype: str, seconds: float) -> dict[str, Any]:
    """Everything measured, as plain data: rates in tokens a second, times in seconds, sizes in bytes."""
    machine = importlib.import_module("octavo.executor.machine")
    facts, config = engine.facts, engine.config
    here = machine.Machine.inspect()
    return {
        "machine": {"cpu": here.cpu, "isa": here.isa, "threads": config.num_threads or machine.default_threads()},
        "config": asdict(config),
        "dtype": dtype,
        "load": asdict(measured.load),
        "streams": [
            _stream(speed, measured, roofline, config)
            for speed in (measured.single, measured.batched)
            if speed is not None
        ],
        "roofline": asdict(roofline),
        "start_seconds": seconds,
        "memory": {
            "weights": roofline.weight_bytes,
            "kv": facts.num_blocks * facts.page_bytes,
            "peak": machine.peak_memory(),
        },
        "notes": list(facts.notes),
    }


def _stream(speed: Speed, measured: Measured, roofline: Any, config: EngineConfig) -> dict[str, Any]:
    """One load's figures, with the least times that the machine allows for the same work."""
    load, count = measured.load, speed.concurrency
    prompts = count * load.prompt_tokens
    steps = -(-prompts // config.max_num_batched_tokens)
    prefill, prefill_bound = roofline.least_seconds(steps=steps, tokens=prompts, draws=count)
    # Halfway through the answer: what a step looks back on, on average.
    context = count * (load.prompt_tokens + load.output_tokens // 2)
    decode, decode_bound = roofline.least_seconds(steps=1, tokens=count, draws=count, context=context)
    return {
        **asdict(speed),
        "prefill_limit": prompts / prefill,
        "prefill_bound": prefill_bound,
        "decode_limit": count / decode,
        "decode_bound": decode_bound,
    }


def _show(report: dict[str, Any]) -> None:
    from rich.table import Table

    screen = console(sys.stdout)
    machine, config, load, roof = (report[name] for name in ("machine", "config", "load", "roofline"))
    about = [config["model"] or "the bundled model", report["dtype"]]
    about += [str(config[name]) for name in ("quantization", "speculative") if config.get(name)]
    where = roof["gpu"] or f"{machine['cpu']}, threads: {machine['threads']}"
    screen.print(
        f"{', '.join(about)}; {load['prompt_tokens']} tokens in, {load['output_tokens']} out\n{where}\n",
        markup=False,
    )
    table = Table(box=None, pad_edge=False, padding=(0, 2))
    table.add_column("")
    table.add_column("median", justify="right")
    table.add_column("least - most", justify="right")
    table.add_column("of the limit", justify="right")
    table.add_column("bound by")
    for stream in report["streams"]:
        count = stream["concurrency"]
        table.add_row("one stream" if count == 1 else f"{count} requests at once", style="bold")
        for name, title in (("prefill", "prefill, tokens/s"), ("decode", "decode, tokens/s")):
            share = statistics.median(stream[name]) / stream[f"{name}_limit"]
            table.add_row(f"  {title}", *_spread(stream[name]), f"{share:.0%}", stream[f"{name}_bound"])
        if count > 1:
            table.add_row("  output, tokens/s", *_spread(stream["output"]))
        table.add_row("  first token, ms", *_spread([1e3 * value for value in stream["first_token"]]))
    screen.print(table)
    memory = report["memory"]
    screen.print(
        f"\nlimits      memory read at {roof['bytes_per_second'] / 1e9:.1f} GB/s, products at "
        f"{roof['flops_per_second'] / 1e9:,.0f} GFLOP/s ({roof['best_rows']} rows)\n"
        f"memory      weights {memory['weights'] / 2**20:,.0f} MiB, KV pool {memory['kv'] / 2**20:,.0f} MiB, "
        f"{memory['peak'] / 2**20:,.0f} MiB held by the process at its peak\n"
        f"start       {report['start_seconds']:.1f} s to a loaded model",
        markup=False,
    )


def _spread(values: list[float]) -> tuple[str, str]:
    """Median; least and most."""
    return _number(statistics.median(values)), f"{_number(min(values))} - {_number(max(values))}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
