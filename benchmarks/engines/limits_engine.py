"""What a workload's matrix products and weights would allow, and where Octavo's time goes in it: no engine to compare
with, but asked like one, so that it has the machine to itself meanwhile."""

from __future__ import annotations

import bisect
import math
import platform
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from protocol import serve

_ROWS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
_SECONDS = 0.12
"""For one product at one number of rows."""
_PASS_SECONDS = 0.03


class Plans:
    """A recorder: the rows of each step, and how many of them had their logits computed."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, int]] = []

    def begin(self, config: object) -> None:
        pass

    def write(self, plan: Any) -> None:
        if plan.chunks:
            self.steps.append((plan.num_tokens, sum(bool(chunk.want) for chunk in plan.chunks)))


class Product:
    """One shape of the model's products: what it takes at any number of rows, by the quickest of several paths.

    Args:
        paths: name -> the linears of that path, one a layer, so that weights come from memory as they do in a step.
        width: inputs.
    """

    def __init__(self, paths: dict[str, list[Any]], width: int) -> None:
        self.paths = paths
        self.width = width
        self._times: dict[int, float] = {}

    def seconds(self, rows: int) -> float:
        """Measured at the sizes of :data:`_ROWS`, and in between on a straight line."""
        if rows == 0:
            return 0.0
        place = bisect.bisect_left(_ROWS, rows)
        if place == len(_ROWS):
            return self._measured(_ROWS[-1]) * rows / _ROWS[-1]
        above = _ROWS[place]
        if above == rows:
            return self._measured(rows)
        below = _ROWS[place - 1]
        share = (rows - below) / (above - below)
        return (1 - share) * self._measured(below) + share * self._measured(above)

    def _measured(self, rows: int) -> float:
        if rows not in self._times:
            self._times[rows] = min(_seconds_each(linears, rows, self.width) for linears in self.paths.values())
        return self._times[rows]


def _seconds_each(linears: list[Any], rows: int, width: int) -> float:
    """The least mean time of a product over some layers in turn."""
    import torch

    x = torch.randn(rows, width).to(torch.bfloat16)
    began = time.perf_counter()
    linears[0](x)
    linears[-1](x)
    once = (time.perf_counter() - began) / 2
    count = max(1, min(len(linears), int(_PASS_SECONDS / once)))
    best, spent, place, passes = math.inf, 0.0, 0, 0
    while passes < 3 or spent < _SECONDS:
        began = time.perf_counter()
        for i in range(count):
            linears[(place + i) % len(linears)](x)
        seconds = time.perf_counter() - began
        best, spent, place, passes = min(best, seconds / count), spent + seconds, place + count, passes + 1
    return best


def products(decoder: Any, quantized: bool) -> dict[str, Product]:
    """The model's products by name, by Octavo's own path and, in bfloat16, by each of torch's too."""
    import torch

    from octavo.model.linear import PackedLinear, PlainLinear, packing_available

    config, layers = decoder.config, decoder._layers
    sizes = {
        "qkv": (config.q_size + 2 * config.kv_size, config.hidden_size),
        "output": (config.hidden_size, config.q_size),
        "gate_up": (2 * config.intermediate_size, config.hidden_size),
        "down": (config.hidden_size, config.intermediate_size),
    }
    others: list[Any] = []
    if not quantized:
        others = [PlainLinear, PackedLinear] if packing_available(torch.bfloat16) else [PlainLinear]
    found = {}
    for name, shape in sizes.items():
        paths = {"octavo": [_gated(layer.gate_up, config) if name == "gate_up" else getattr(layer, name)
                            for layer in layers]}  # fmt: skip
        for kind in others:
            paths[kind.kind] = [kind(torch.randn(shape).to(torch.bfloat16), None) for _ in layers]
        found[name] = Product(paths, shape[1])
    heads: dict[str, list[Any]] = {"octavo": [decoder._head]}
    for kind in others:
        heads[kind.kind] = [kind(torch.randn(config.vocab_size, config.hidden_size).to(torch.bfloat16), None)]
    found["head"] = Product(heads, config.hidden_size)
    return found


def _gated(linear: Any, config: Any) -> Callable[[Any], Any]:
    """A gated product as one of its input alone."""
    import torch

    room: dict[int, Any] = {}

    def call(x: Any) -> Any:
        rows = x.shape[0]
        if rows not in room:
            room[rows] = torch.empty(rows, config.intermediate_size, dtype=torch.bfloat16)
        return linear(x, room[rows])

    return call


def least_seconds(found: dict[str, Product], num_layers: int, steps: list[tuple[int, int]]) -> float:
    """All products of the steps; behind the last attention only the rows that draw are needed."""
    total = 0.0
    for rows, draws in steps:
        rest = ("output", "gate_up", "down")
        total += num_layers * found["qkv"].seconds(rows)
        total += sum((num_layers - 1) * found[name].seconds(rows) + found[name].seconds(draws) for name in rest)
        total += found["head"].seconds(draws)
    return total


@contextmanager
def launches_timed() -> Iterator[dict[str, float]]:
    """Within it, seconds in compiled kernels are collected by what they are for."""
    from octavo.kernels.cpu import launch

    times: dict[str, float] = defaultdict(float)
    plain = launch.run

    def timed(kernel: Any, *arguments: Any) -> None:
        began = time.perf_counter()
        plain(kernel, *arguments)
        times[_purpose(kernel)] += time.perf_counter() - began

    users = [
        module
        for name, module in list(sys.modules.items())
        if name.startswith("octavo.kernels.cpu") and getattr(module, "run", None) is plain
    ]
    for module in users:
        module.run = timed  # type: ignore[attr-defined]
    try:
        yield times
    finally:
        for module in users:
            module.run = plain  # type: ignore[attr-defined]


def _purpose(kernel: Any) -> str:
    module = kernel.function.__module__
    if module.endswith(".program"):
        return "programs"
    if ".attention" in module:
        return "attention"
    return "matrix products" if "linear" in module else "other kernels"


def profile(run: Callable[[], tuple[float, float]], decoder: Any) -> dict[str, float]:
    """Shares of the time of ``run``, which gives its seconds and, of these, the executor's.

    A step that decodes is one launch, and in others what lies between two attentions. What such launches spend on what
    is taken from a second run, in which everything is launched by itself.
    """
    with launches_timed() as times:
        whole, executor = run()
    recordable = decoder._recordable
    decoder._recordable = False
    decoder._views.clear()
    try:
        with launches_timed() as apart:
            run()
    finally:
        decoder._recordable = recordable
        decoder._views.clear()
    names = ("matrix products", "attention", "other kernels")
    more = {name: max(0.0, apart[name] - times[name]) for name in names}
    programs, kernels = times.pop("programs", 0.0), sum(times.values())
    seconds = {name: times[name] + programs * more[name] / (sum(more.values()) or 1.0) for name in names} | {
        "Python and torch's operators in the executor": executor - kernels - programs,
        "Python in scheduler and engine": whole - executor,
    }
    return {name: value / whole for name, value in seconds.items()}


def load(folder: str, options: dict[str, Any]) -> tuple[Callable[[dict[str, Any]], dict[str, Any]], dict[str, str]]:
    from octavo_engine import configure

    import octavo
    from octavo import LLMEngine, SamplingParams
    from octavo.executor.roofline import read_bandwidth

    plans = Plans()
    engine = LLMEngine(configure(folder, options), recorder=plans)
    decoder = engine._executor.decoder  # type: ignore[attr-defined]

    def run(workload: dict[str, Any]) -> dict[str, Any]:
        params = [SamplingParams(temperature=0, ignore_eos=True, max_tokens=n) for n in workload["outputs"]]

        def serve_it() -> tuple[float, float]:
            plans.steps.clear()
            engine.reset_prefix_cache()
            engine.reset_stats()
            began = time.perf_counter()
            engine.generate(workload["prompts"], params)
            return time.perf_counter() - began, engine.stats().executor_seconds

        serve_it()
        found: dict[str, Any] = {"profile": profile(serve_it, decoder)}
        tokens = sum(workload["outputs"])
        if len(workload["prompts"]) == 1:
            rate, size = read_bandwidth(decoder.bytes_per_step), decoder.bytes_per_step
            found |= {"bytes_per_second": rate, "weight_bytes": size, "bandwidth_tokens_per_second": rate / size}
        else:
            shapes = products(decoder, "quantization" in options)
            seconds = least_seconds(shapes, decoder.config.num_layers, plans.steps)
            found |= {"gemm_seconds": seconds, "gemm_tokens_per_second": tokens / seconds}
        return found

    return run, {"octavo": octavo.__version__, "python": platform.python_version()}


serve(load)
