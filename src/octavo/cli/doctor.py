"""``octavo doctor``: what would run here, and what would fit. Changes nothing."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from octavo.cli.options import engine_options
from octavo.cli.terminal import console
from octavo.config import EngineConfig

if TYPE_CHECKING:
    from rich.table import Table


@engine_options()
def doctor(
    config: EngineConfig,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as one JSON object.")] = False,
) -> None:
    """Show the machine, the kernels and the memory plan for a model. Loads no weights, changes nothing."""
    # By name: it stands on torch's side, which is imported only here.
    report = importlib.import_module("octavo.executor.doctor").inspect(config)
    if as_json:
        print(json.dumps(as_data(report), ensure_ascii=False, default=str))
    else:
        screen = console(sys.stdout)
        for table in _tables(report, config):
            screen.print(table)
        for note in report.memory.notes:
            screen.print(note, markup=False)


def as_data(report: Any) -> dict[str, Any]:
    """The report as plain data, with the figures that the memory plan derives."""
    memory = report.memory
    data = asdict(report)
    data["versions"] = dict(report.versions)
    data["folder"] = str(report.folder)
    data["memory"].update(
        num_groups=memory.num_groups,
        kv_bytes=memory.kv_bytes,
        swap_bytes=memory.swap_bytes,
        tokens=memory.tokens,
        concurrent_at_full_context=memory.concurrent_at_full_context,
    )
    return data


def _tables(report: Any, config: EngineConfig) -> list[Table]:
    machine, model, memory = report.machine, report.model, report.memory
    capacity = [
        f"{memory.concurrent(tokens):,} of {tokens:,} tokens"
        for tokens in sorted({256, 1024, 4096, memory.max_model_len})
        if tokens <= memory.max_model_len
    ]
    gpu = report.gpu
    groups = f"; so many tokens take {memory.num_groups}, one a layer group" if memory.num_groups > 1 else ""
    tables = [
        _table(
            "Machine",
            {
                "processor": machine.cpu,
                "cores": f"{machine.cores}, {report.threads} threads used",
                "instructions": ", ".join(machine.isa) or "none that matter here",
                "memory": f"{_size(machine.available_bytes)} free of {_size(machine.total_bytes)}",
                "python": report.python,
                "packages": ", ".join(f"{name} {version}" for name, version in report.versions),
            },
        ),
        _table(
            "Model",
            {
                "folder": str(Path(report.folder)),
                "architecture": model.architecture,
                "shape": f"{model.num_layers} layers, hidden {model.hidden_size}, {model.num_heads} heads over "
                f"{model.num_kv_heads} of {model.head_dim}",
                "vocabulary": f"{model.vocab_size:,}",
                "dtype": f"{report.dtype} ({report.dtype_reason})",
                "kernels": f"{report.backend.name} ({report.backend.reason})",
            },
        ),
        _table(
            "Memory plan",
            {
                "weights": f"{_size(memory.weights_bytes)} at the most",
                **(
                    {}
                    if gpu is None
                    else {"beside them": f"{_size(memory.working_bytes)} estimated, measured at start"}
                ),
                "KV memory": f"{_size(memory.kv_bytes)}: {memory.num_blocks:,} blocks of {memory.block_size} tokens, "
                f"{_size(memory.page_bytes)} each{groups}",
                "KV dtype": report.kv_dtype,
                "swap space": f"{_size(memory.swap_bytes)}: {memory.num_host_blocks:,} blocks of preempted requests",
                "tokens": f"{memory.tokens:,} fit at once",
                "context": f"{memory.max_model_len:,} tokens served (the model's own: {model.context_length:,})",
                "requests": f"{', '.join(capacity)} fit at once; max_num_seqs is {config.max_num_seqs}",
            },
        ),
    ]
    if gpu is not None:
        tables.insert(1, _gpu_table(gpu))
        return tables
    products = dict(report.linears) or {
        "none yet": "the first start with a model measures what is fastest for its shapes"
    }
    return [*tables, _table("Matrix products measured here", products)]


def _gpu_table(gpu: Any) -> Table:
    found, now = gpu.description, gpu.memory
    return _table(
        "GPU",
        {
            "name": found.name,
            "memory": f"{_size(now.free)} free of {_size(now.total)}",
            "capability": ".".join(map(str, found.capability)),
        },
    )


def _table(title: str, rows: dict[str, str]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2))
    for name, value in rows.items():
        table.add_row(name, Text(value))
    return table


def _size(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.1f} {unit}"
        count /= 1024
    return f"{count:,.1f} GiB"
