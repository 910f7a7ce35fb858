"""The GPU benchmark's results as Markdown."""

from __future__ import annotations

import statistics
from typing import Any

KIND = {"memory": ("TB/s", "num_bytes"), "arithmetic": ("TFLOP/s", "flops")}


def markdown(data: dict[str, Any]) -> str:
    """Everything that was measured."""
    device, ceilings = data["device"], data["ceilings"]
    parts = [
        f"{device['name']}, {device['memory_gib']} GiB; torch {device['torch']}, Triton {device['triton']}, "
        f"CUDA {device['cuda']}; {data['when']} UTC. A large copy moves {ceilings['copy'] / 1e12:.2f} TB/s, a large "
        f"sum reads {ceilings['read'] / 1e12:.2f} TB/s, a large bfloat16 product makes {ceilings['matmul'] / 1e12:.0f} "
        "TFLOP/s. Medians; *n*x is how many times faster Octavo was in the same run."
    ]
    families = dict.fromkeys(each["kernel"] for each in data["kernels"])
    parts += [f"### {name}\n\n{_kernels([k for k in data['kernels'] if k['kernel'] == name])}" for name in families]
    if data["engines"]:
        parts.append(f"### {data['model']}\n\n{_engines(data)}")
    notes = {f"{name}: {why}" for each in data["kernels"] for name, why in each["missing"].items()}
    notes |= {f"vllm: {data['vllm']}"} if data["vllm"] else set()
    if notes:
        parts.append("Not measured:\n\n" + "\n".join(f"- {note}" for note in sorted(notes)))
    return "\n\n".join(parts) + "\n"


def _kernels(cases: list[dict[str, Any]]) -> str:
    """A row a shape, a column for everyone."""
    names = list(dict.fromkeys(name for case in cases for name in case["seconds"]))
    unit, work = KIND[cases[0]["bound"]]
    lines = [f"| | {' | '.join(names)} | octavo, {unit} |", "| --- |" + " --- |" * (len(names) + 1)]
    for case in cases:
        ours = case["seconds"]["octavo"]["median"]
        cells = [_time(case["seconds"].get(name), None if name == "octavo" else ours) for name in names]
        lines.append(f"| {case['shape']} | {' | '.join(cells)} | {case[work] / ours / 1e12:.2f} |")
    return "\n".join(lines)


def _time(timing: dict[str, float] | None, ours: float | None) -> str:
    if timing is None:
        return "-"
    text = f"{timing['median'] * 1e6:,.1f} us ({timing['least'] * 1e6:,.1f}-{timing['most'] * 1e6:,.1f})"
    return text if ours is None else f"{text} **{timing['median'] / ours:.2f}x**"


def _engines(data: dict[str, Any]) -> str:
    """A row a figure, a column an engine."""
    results = data["engines"]
    names = list(dict.fromkeys(each["engine"] for each in results))
    lines = [f"| | {' | '.join(names)} |", "| --- |" + " --- |" * len(names)]
    for workload in dict.fromkeys(each["workload"] for each in results):
        mine = {each["engine"]: each for each in results if each["workload"] == workload}
        figures = dict.fromkeys(figure for each in mine.values() for figure in each["samples"])
        for figure in figures:
            cells = [_figure(mine.get(name), mine["octavo"], figure) for name in names]
            lines.append(f"| {workload}: {figure.replace('_', ' ')} | {' | '.join(cells)} |")
    said = []
    for each in results:
        extras = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in each["extras"].items())
        if extras:
            said.append(f"- {each['engine']}, {each['workload']}: {extras}")
    for workload, seconds in data["floors"].items():
        ours = next(r for r in results if r["engine"] == "octavo" and r["workload"] == workload)["samples"]
        share = seconds / statistics.median(ours["step_seconds"])
        said.append(f"- {workload}: a step's floor is {seconds * 1e3:.2f} ms; Octavo runs at {share:.0%} of its speed")
    return "\n".join(lines) + "\n\n" + "\n".join(said)


def _figure(result: dict[str, Any] | None, ours: dict[str, Any], figure: str) -> str:
    if result is None or figure not in result["samples"]:
        return "-"
    samples = result["samples"][figure]
    median, best = statistics.median(samples), statistics.median(ours["samples"][figure])
    text = f"{median:,.4g} ({min(samples):,.4g}-{max(samples):,.4g})"
    ratio = median / best if figure == "step_seconds" else best / median
    return text if result is ours else f"{text} **{ratio:.2f}x**"
