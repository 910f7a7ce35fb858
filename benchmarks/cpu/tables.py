"""The results as Markdown."""

from __future__ import annotations

import statistics
from typing import Any

from cpu.results import Results, Slice

FIGURES = {
    "prefill_tokens_per_second": ("prefill, tokens/s", True),
    "decode_tokens_per_second": ("decode, tokens/s", True),
    "wall_seconds": ("wall, s", False),
    "output_tokens_per_second": ("output tokens/s", True),
    "first_token_seconds": ("start to first token, s", False),
    "peak_gib": ("peak memory, GiB", False),
}
"""What a figure is called, and whether more of it is better."""

ORDER = ("octavo", "vllm", "openvino", "llamacpp", "transformers")


def markdown(results: Results) -> str:
    """Everything: one table for each model and precision, then where the figures come from."""
    machine = results.machine
    parts = [
        f"{machine['cpu']}, {machine['cores']} cores ({machine['flags']}), {machine['memory_gib']} GiB, "
        f"{machine['system']}. Random weights; medians, least and most in brackets; *n*x is how much better Octavo "
        "was in the same run."
    ]
    places = dict.fromkeys((each.model, each.precision) for each in results.slices)
    for model, precision in sorted(places):
        slices = [each for each in results.slices if (each.model, each.precision) == (model, precision)]
        parts.append(f"### {model}, {precision}\n\n{_table(slices)}")
        notes = [note for each in slices for note in _rooflines(each)]
        if notes:
            parts.append("\n".join(f"- {note}" for note in notes))
    parts.append(_versions(results))
    return "\n\n".join(parts) + "\n"


def _table(slices: list[Slice]) -> str:
    """A row a figure, a column an engine."""
    names = [name for name in ORDER if any(name in each.engines for each in slices)]
    lines = ["| | " + " | ".join(names) + " |", "| --- |" + " --- |" * len(names)]
    workloads = sorted({each.workload for each in slices})
    for workload in workloads:
        mine = [each for each in slices if each.workload == workload]
        for figure, (title, more_is_better) in FIGURES.items():
            cells = [_cell(mine, name, figure, more_is_better) for name in names]
            if any(cells):
                scale = min(each.scale for each in mine)
                part = "" if scale == 1 or workload == "W1" else f" ({scale:g} of the requests)"
                label = title if workload == "start" else f"{workload}{part} {title}"
                lines.append(f"| {label} | " + " | ".join(cell or "-" for cell in cells) + " |")
    return "\n".join(lines)


def _cell(slices: list[Slice], name: str, figure: str, more_is_better: bool) -> str:
    """The engine's samples of the newest slice that it is in (Octavo's: of all slices), and the ratio within it."""
    found = [each for each in slices if figure in each.engines.get(name, {}).get("samples", {})]
    if not found:
        return ""
    if name == "octavo":
        return _spread([value for each in found for value in each.engines[name]["samples"][figure]])
    samples = found[-1].engines[name]["samples"][figure]
    own = found[-1].engines.get("octavo", {}).get("samples", {}).get(figure)
    if not own:
        return _spread(samples)
    ratio = statistics.median(own) / statistics.median(samples)
    return f"{_spread(samples)} **{ratio if more_is_better else 1 / ratio:.2f}x**"


def _spread(samples: list[float]) -> str:
    return f"{_number(statistics.median(samples))} ({_number(min(samples))}-{_number(max(samples))})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _rooflines(each: Slice) -> list[str]:
    """What the machine would allow, and how much of it was attained."""
    roof = each.roofline
    own = each.engines.get("octavo", {}).get("samples", {})
    notes = []
    if "gemm_tokens_per_second" in roof and "output_tokens_per_second" in own:
        attained = statistics.median(own["output_tokens_per_second"]) / roof["gemm_tokens_per_second"]
        notes.append(
            f"{each.workload}'s matrix products alone, each by the quickest path measured for its shape, would give "
            f"{_number(roof['gemm_tokens_per_second'])} output tokens/s: Octavo attains {attained:.0%} of it."
        )
    if "bandwidth_tokens_per_second" in roof and "decode_tokens_per_second" in own:
        attained = statistics.median(own["decode_tokens_per_second"]) / roof["bandwidth_tokens_per_second"]
        notes.append(
            f"{each.workload}: {roof['weight_bytes'] / 1e6:,.0f} MB of weights a token at "
            f"{roof['bytes_per_second'] / 1e9:.1f} GB/s read would give "
            f"{_number(roof['bandwidth_tokens_per_second'])} tokens/s: Octavo attains {attained:.0%} of it."
        )
    if "profile" in roof:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in roof["profile"].items())
        notes.append(f"Where Octavo's time goes in {each.workload}: {shares}.")
    return notes


def _versions(results: Results) -> str:
    found: dict[str, dict[str, Any]] = {}
    for each in results.slices:
        for name, engine in each.engines.items():
            found.setdefault(name, {}).update(engine.get("versions", {}))
    days = sorted(each.when[:10] for each in results.slices)
    lines = [
        f"{name}: " + ", ".join(f"{package} {version}" for package, version in found[name].items())
        for name in ORDER
        if name in found
    ]
    span = days[0] if days[0] == days[-1] else f"{days[0]} to {days[-1]}"
    return f"Measured {span} with " + "; ".join(lines) + "."
