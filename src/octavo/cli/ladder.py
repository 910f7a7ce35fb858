"""``octavo ladder``: one load through four configurations, and what each step bought."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from octavo.cli.terminal import LoadProgress, console
from octavo.errors import ConfigError

if TYPE_CHECKING:
    from octavo.simulator.ladder import Load, Rung
    from octavo.simulator.report import Percentiles

COLUMNS = ("preset", "failed", "preempt", "evict", "urgent\np50 / p99", "ordinary\np50 / p99", "hits", "use", "tok/s")


def ladder(
    real: Annotated[
        bool, typer.Option("--real", help="Run the engine on the bundled model, on this machine and its clock.")
    ] = False,
    num_blocks: Annotated[
        int | None, typer.Option(help="Blocks in the pool (default: 1200, or 64 with --real).", show_default=False)
    ] = None,
    requests: Annotated[
        int | None, typer.Option(help="Requests in the load (default: 400, or 96).", show_default=False)
    ] = None,
    rate: Annotated[
        float | None, typer.Option(help="Requests a second (default: 3, or 16).", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="Draws the load.")] = 0,
    machine: Annotated[str, typer.Option(help="The machine that is simulated; see octavo simulate.")] = "rtx4090-8b",
    html: Annotated[Path | None, typer.Option(help="Also write a page with pictures.", metavar="FILE")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a rung.")] = False,
) -> None:
    """Serve one load under v1-naive, v2-lru, v3-priority and v4-prefix, and print what each step buys."""
    from octavo.simulator.ladder import Load
    from octavo.simulator.ladder_page import check_can_draw, write_page

    if html is not None:
        check_can_draw()
    load = Load() if not real else Load(requests=96, rate=16, opening=64, question=(16, 64), answer=(32, 160), piece=16)
    given: dict[str, Any] = {"requests": requests, "rate": rate, "seed": seed}
    load = replace(load, **{name: value for name, value in given.items() if value is not None})
    blocks = num_blocks if num_blocks is not None else 64 if real else 1200
    about = _about(load, blocks, "the bundled model on this machine" if real else f"{machine}, simulated")
    rungs: list[Rung] = []
    if not as_json:
        print(about + "\n", file=sys.stderr)
    with LoadProgress(as_json) as progress:

        def advance(preset: str, done: int, total: int) -> None:
            progress(preset, done, total)

        for rung in _climb(load, blocks, real, machine, advance):
            rungs.append(rung)
            if as_json:
                print(json.dumps(rung.as_dict()), flush=True)
    if not as_json:
        _show(rungs)
    if html is not None:
        write_page(html, rungs, about, list(COLUMNS), [_cells(rung) for rung in rungs])
        print(f"wrote {html}", file=sys.stderr)


def _climb(load: Load, blocks: int, real: bool, name: str, progress: Any) -> Iterator[Rung]:
    from octavo.simulator.cost import machine
    from octavo.simulator.ladder import climb, climb_for_real

    if blocks * 16 < load.longest:
        raise ConfigError(
            f"num_blocks={blocks} hold {blocks * 16} tokens, but a request of this load has up to {load.longest}: "
            f"use at least {-(-load.longest // 16)}"
        )
    if real:
        return climb_for_real(load, progress=progress, num_blocks=blocks, max_num_seqs=32)
    return climb(load, machine(name), progress=progress, num_blocks=blocks)


def _about(load: Load, blocks: int, where: str) -> str:
    return (
        f"{load.requests} requests at {load.rate:g} a second, {load.urgent:.0%} of them urgent; {load.assistants} "
        f"openings of {load.opening} tokens, questions of {load.question[0]}-{load.question[1]}, answers of "
        f"{load.answer[0]}-{load.answer[1]}; {blocks} blocks of 16 tokens; {where}."
    )


def _show(rungs: list[Rung]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 1))
    for place, name in enumerate(COLUMNS):
        table.add_column(name, justify="right" if place else "left", no_wrap=True)
    for rung in rungs:
        table.add_row(*_cells(rung))
    screen = console(sys.stdout)
    screen.print(table)
    screen.print("\nfailed: for lack of memory, in mid-run; urgent, ordinary: seconds to first token;")
    screen.print("hits: prompt tokens found in memory; use: tokens over token slots of held blocks")


def _cells(rung: Rung) -> list[str]:
    return [
        rung.preset,
        f"{rung.num_failed}/{rung.num_requests}",
        str(rung.num_preemptions),
        str(rung.num_evicted),
        _times(rung.ttft_urgent),
        _times(rung.ttft_ordinary),
        f"{rung.hit_rate:.0%}",
        f"{rung.utilisation:.1%}",
        f"{rung.output_tokens_per_second:.0f}",
    ]


def _times(times: Percentiles | None) -> str:
    return "-" if times is None else f"{times.p50:.2f} / {times.p99:.2f}"
