"""``octavo simulate``: a recorded load through the scheduler, on a machine that is not there."""

from __future__ import annotations

import json
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from octavo.cli.options import engine_options
from octavo.cli.terminal import LoadProgress, console
from octavo.config import EVICTIONS, EngineConfig
from octavo.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from octavo.simulator.cache_lab import CacheResult
    from octavo.simulator.cost import Machine
    from octavo.simulator.report import Percentiles, Report
    from octavo.simulator.trace import Trace

OPTIONS = (
    "block_size", "num_blocks", "max_num_seqs", "max_num_batched_tokens", "max_model_len", "policy", "ageing_seconds",
    "swap_space", "preemption", "batching", "prefix_caching", "depth",
)  # fmt: skip
DEFAULTS = {"max_num_seqs": 256, "max_num_batched_tokens": 8192, "depth": 0}
"""A GPU's, where EngineConfig's own are a CPU's."""


@engine_options(*OPTIONS, **DEFAULTS)
def simulate(
    file: Annotated[Path, typer.Argument(help="A request trace: Mooncake's JSON lines or Azure's CSV, also gzipped.")],
    config: EngineConfig,
    cost: Annotated[str, typer.Option(help="Whose costs and memory: a machine with a model on it.")] = "h100-8b",
    cost_number: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=SECONDS", help="Replace a number of the cost, for instance step=0.02; repeatable."),
    ] = None,
    memory: Annotated[float | None, typer.Option(help="GiB of KV memory. (default: the machine's)")] = None,
    eviction: Annotated[
        str,
        typer.Option(
            metavar="|".join(EVICTIONS),
            help="Which freed block is given up first. With --cache-only several, separated by commas; there also "
            "belady, who knows the future.",
        ),
    ] = "lru",
    rate: Annotated[float | None, typer.Option(help="Requests a second: stretch the trace's times to it.")] = None,
    time_scale: Annotated[float | None, typer.Option(help="Multiply the trace's times; 0 is all at once.")] = None,
    limit: Annotated[int | None, typer.Option(help="Replay only the first so many requests.")] = None,
    piece: Annotated[int, typer.Option(help="Prompt tokens that each hash id of the trace covers.")] = 512,
    cache_only: Annotated[
        bool, typer.Option("--cache-only", help="Only the prefix cache, block by hash id: no scheduler, no time.")
    ] = False,
    capacity: Annotated[
        str | None,
        typer.Option(metavar="BLOCKS,...", help="With --cache-only: blocks in the cache. (default: endless)"),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Prove each plan right with the KV oracle underneath. Slow.")
    ] = False,
    log: Annotated[Path | None, typer.Option(help="Write every plan to this file (a run log).")] = None,
    compare_contiguous: Annotated[
        bool, typer.Option("--compare-contiguous", help="Replay also on contiguous memory, as systems had it before.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, for machines.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")] = False,
) -> None:
    """Replay a request trace through Octavo's own scheduler under a virtual clock: what would this load do here?"""
    from octavo.simulator.cost import machine as known_machine
    from octavo.simulator.trace_reader import read_trace

    if cache_only:
        _refuse_beside_cache_only(
            config, {"--rate": rate, "--time-scale": time_scale, "--log": log, "--check": check or None,
                     "--compare-contiguous": compare_contiguous or None,
                     "--memory": memory, "--cost-number": cost_number},
        )  # fmt: skip
        trace = read_trace(file, piece=piece)
        _cache_only(trace if limit is None else trace.first(limit), eviction, capacity, as_json, quiet)
        return
    if capacity is not None:
        raise ConfigError("--capacity is read with --cache-only; the replay's memory is --num-blocks or --memory")
    if memory is not None and config.num_blocks is not None:
        raise ConfigError("--memory and --num-blocks say the same: leave one out")
    if memory is not None and not 0 < memory < 2**20:
        raise ConfigError(f"--memory {memory} must be a positive number of GiB")
    config = replace(config, eviction=eviction)
    machine = known_machine(
        cost, kv_bytes=None if memory is None else int(memory * 2**30), numbers=_numbers(cost_number or [])
    )
    trace = _timed(read_trace(file, piece=piece), limit, rate, time_scale)
    _replay(trace, config, machine, cost, check, log, compare_contiguous, as_json, quiet)


def _refuse_beside_cache_only(config: EngineConfig, given: dict[str, object]) -> None:
    plain = EngineConfig(**DEFAULTS)  # type: ignore[arg-type]
    changed = [item.name for item in fields(config) if getattr(config, item.name) != getattr(plain, item.name)]
    names = [name for name, value in given.items() if value is not None]
    names += ["--" + name.replace("_", "-") for name in changed]
    if names:
        raise ConfigError(f"--cache-only knows neither time nor scheduler: leave out {', '.join(names)}")


def _numbers(pairs: list[str]) -> dict[str, float]:
    numbers = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        try:
            numbers[name.strip()] = float(value)
        except ValueError:
            raise ConfigError(f"--cost-number {pair!r} must be NAME=SECONDS, for instance step=0.02") from None
    return numbers


def _timed(trace: Trace, limit: int | None, rate: float | None, time_scale: float | None) -> Trace:
    if rate is not None and time_scale is not None:
        raise ConfigError("--rate and --time-scale both set the trace's times: leave one out")
    if limit is not None:
        trace = trace.first(limit)
    if rate is not None:
        return trace.at_rate(rate)
    return trace if time_scale is None else trace.stretched(time_scale)


def _replay(
    trace: Trace,
    config: EngineConfig,
    machine: Machine,
    cost: str,
    check: bool,
    log: Path | None,
    compare: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    from octavo.memory.contiguous import RULES
    from octavo.recorder import RunLog
    from octavo.simulator.simulation import contiguous_simulation, simulation

    with ExitStack() as stack:
        recorder = None
        if log is not None:
            try:
                recorder = stack.enter_context(RunLog(log))
            except OSError as error:
                raise ConfigError(f"--log {log} cannot be written: {error.strerror}") from None
        run = simulation(trace, config, machine, check=check, recorder=recorder)
        progress = stack.enter_context(LoadProgress(quiet))
        began = time.monotonic()
        report = run.run(lambda done, total: progress("simulating", done, total))
        wall = time.monotonic() - began
        contiguous = {
            rule: contiguous_simulation(trace, config, machine, rule).run(
                lambda done, total, rule=rule: progress(f"contiguous, {rule}", done, total)  # type: ignore[misc]
            )
            for rule in (RULES if compare else ())
        }
    facts: dict[str, object] = {
        "cost": cost,
        "about": machine.about,
        "num_blocks": run.config.num_blocks,
        "block_size": run.config.block_size,
        "checked": check,
        "wall_seconds": wall,
        "simulated_requests_per_wall_second": report.num_requests / wall,
    }
    if as_json:
        if compare:
            facts["contiguous"] = {rule: each.as_dict() for rule, each in contiguous.items()}
        print(json.dumps({**facts, **report.as_dict()}, ensure_ascii=False))
        return
    screen = console(sys.stdout)
    screen.print(_table(report, run.config.num_blocks, run.config.block_size))
    if compare:
        screen.print(_comparison({"paged": report, **contiguous}))
    screen.print(f"{cost}: {machine.about}", markup=False, style="grey58")
    checked = " The oracle found nothing wrong." if check else ""
    screen.print(f"Replayed in {wall:.1f} s, {report.num_requests / wall:,.0f} requests/s.{checked}")


def _comparison(reports: dict[str, Report]) -> Table:
    from rich.table import Table

    table = Table(title="Paged and contiguous memory", title_justify="left", box=None, padding=(0, 2))
    for name in ("memory", "requests/s", "refused", "together", "at most", "held", "filled", "wasted"):
        table.add_column(name, justify="left" if name == "memory" else "right")
    for name, each in reports.items():
        table.add_row(
            name, f"{each.requests_per_second:,.2f}", f"{each.num_refused:,}", f"{each.resident:,.1f}",
            f"{each.peak_resident:,}", f"{each.held:.1%}", f"{each.filled:.1%}", f"{1 - each.utilisation:.2%}",
        )  # fmt: skip
    return table


def _table(report: Report, num_blocks: int, block_size: int) -> Table:
    from rich.table import Table

    table = Table(title=report.trace, title_justify="left", show_header=False, box=None, padding=(0, 2))
    refused = f", {report.num_refused:,} refused" if report.num_refused else ""
    swaps = (
        f", {report.num_swapped_out:,} blocks swapped out and {report.num_swapped_in:,} in"
        if report.num_swapped_out
        else ""
    )
    for name, value in {
        "requests": f"{report.num_finished:,} finished{refused}, in {report.seconds:,.1f} s ({report.busy:.0%} busy)",
        "throughput": f"{report.requests_per_second:,.2f} requests/s, {report.output_tokens_per_second:,.0f} output "
        f"tokens/s, {report.total_tokens_per_second:,.0f} tokens/s in all",
        "time to first token": _spread(report.ttft, 1, "s"),
        "time per output token": _spread(report.tpot, 1000, "ms"),
        "latency": _spread(report.latency, 1, "s"),
        "waited for a place": _spread(report.queued, 1, "s"),
        "prefix cache": f"{report.token_hit_rate:.1%} of prompt tokens, {report.block_hit_rate:.1%} of prompt blocks",
        "memory": f"{num_blocks:,} blocks of {block_size}; {report.held:.1%} held on average, at most "
        f"{report.peak_held:.1%}",
        "utilisation": f"{report.utilisation:.2%} of the slots in held blocks hold a token",
        "resident": f"{report.resident:,.1f} requests on average, at most {report.peak_resident:,}",
        "short of blocks": f"{report.num_preemptions:,} preemptions, {report.num_evicted:,} cached blocks "
        f"evicted{swaps}",
        "steps": f"{report.num_steps:,}, {report.num_computed_tokens:,} tokens computed",
    }.items():
        table.add_row(name, value)
    for reason in report.refusals[:3]:
        table.add_row("refused", reason)
    return table


def _spread(times: Percentiles | None, scale: int, unit: str) -> str:
    if times is None:
        return "-"
    p50, p90, p99 = (f"{value * scale:,.3g}" for value in (times.p50, times.p90, times.p99))
    return f"p50 {p50} {unit}, p90 {p90} {unit}, p99 {p99} {unit}"


def _cache_only(trace: Trace, eviction: str, capacity: str | None, as_json: bool, quiet: bool) -> None:
    from octavo.simulator.cache_lab import run_cache

    policies = [name.strip() for name in eviction.split(",")]
    capacities = [None] if capacity is None else [_blocks(entry) for entry in capacity.split(",")]
    results: list[CacheResult] = []
    with LoadProgress(quiet) as progress:
        for policy in policies:
            for blocks in capacities:
                progress("caching", len(results), len(policies) * len(capacities))
                results.append(run_cache(trace, policy, blocks))
    if as_json:
        rows = [{**asdict(each), "hit_rate": each.hit_rate, "token_hit_rate": each.token_hit_rate} for each in results]
        print(json.dumps({"trace": trace.name, "piece": trace.piece, "results": rows}))
        return
    console(sys.stdout).print(_cache_table(trace, results))


def _blocks(text: str) -> int:
    try:
        return int(text.replace("_", ""))
    except ValueError:
        raise ConfigError(f"--capacity {text!r} must be numbers of blocks, separated by commas") from None


def _cache_table(trace: Trace, results: list[CacheResult]) -> Table:
    from rich.table import Table

    table = Table(title=f"{trace.name}: prefix hits", title_justify="left", box=None, padding=(0, 2))
    for name in ("eviction", "blocks", "of blocks", "of tokens", "evicted"):
        table.add_column(name, justify="left" if name == "eviction" else "right")
    for each in results:
        blocks = "endless" if each.capacity is None else f"{each.capacity:,}"
        table.add_row(
            each.eviction, blocks, f"{each.hit_rate:.2%}", f"{each.token_hit_rate:.2%}", f"{each.num_evicted:,}"
        )
    return table
