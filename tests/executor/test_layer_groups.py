"""A model of several layer groups in the executor: a table for each, blocks given back behind the windows."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import load_reference
from executor.gpu.stand_in_engine import settings_of, stand_in_executor
from plan_runner import PlanRunner

from octavo.config import EngineConfig
from octavo.executor.doctor import inspect
from octavo.executor.factory import create_executor
from octavo.executor.gpu.executor import GpuExecutor
from octavo.executor.torch_executor import TorchExecutor
from octavo.plan import HOLE, LayerGroup, SamplingSpec, StepPlan

BLOCK, SLOTS, WINDOW = 4, 8, 10
GROUPS = (LayerGroup(3), *[LayerGroup(3, WINDOW)] * 3)


@pytest.fixture(scope="module")
def folder(checkpoint: Callable[..., Path]) -> Path:
    """Ten layers: three that see all, seven windowed; so the last group has two empty places."""
    kinds = ["full_attention" if layer % 4 == 1 else "sliding_attention" for layer in range(10)]
    return checkpoint("gemma3", num_hidden_layers=10, hidden_size=48, sliding_window=WINDOW, layer_types=kinds)


STAND_IN = "stand-in"
"""The GPU's executor, on the stand-in for a GPU."""

ALL = ("cpu", "reference", STAND_IN)


def build(folder: Path, kernels: str, batch_invariant: bool = True) -> TorchExecutor | GpuExecutor:
    settings: dict[str, Any] = {"dtype": "float32", "block_size": BLOCK, "num_blocks": 300, "max_num_seqs": SLOTS}
    settings |= {"swap_space": 0.001}
    if kernels == STAND_IN:
        settings = settings_of(**settings, batch_invariant=batch_invariant, cuda_graphs=False)
        return stand_in_executor(EngineConfig(**settings), folder)
    config = EngineConfig(**settings, kernels=kernels, batch_invariant=batch_invariant, num_threads=1)
    made = create_executor(config, folder)
    assert isinstance(made, TorchExecutor)
    return made


@pytest.fixture(scope="module", params=ALL)
def executor(folder: Path, request: pytest.FixtureRequest) -> TorchExecutor:
    return build(folder, request.param)


def runner_of(executor: TorchExecutor, seed: int = 0) -> PlanRunner:
    def spoil(block: int) -> None:
        executor._kv[block] = float("nan")

    return PlanRunner(executor, BLOCK, SLOTS, seed, spoil)


def prompt_of(length: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(2, 384), k=length)


def samples(runner: PlanRunner, name: object) -> list[object]:
    return [result.samples[0] for result in runner.lines[name].results if result.samples]


def alone(executor: TorchExecutor, prompt: list[int], number: int, **keywords: Any) -> list[object]:
    runner = runner_of(executor, seed=9)
    line = runner.add("alone", prompt, **keywords)
    for _ in range(number):
        runner.step({"alone": len(line.tokens) - line.computed})
    drawn = samples(runner, "alone")
    finish(runner)
    return drawn


def finish(runner: PlanRunner) -> None:
    for name in list(runner.lines):
        runner.finish(name)
    runner.executor.collect(runner.executor.submit(StepPlan(0, (), released=tuple(runner.released))))
    assert sorted(runner.free) == list(range(runner.executor.facts.num_blocks))


def test_the_facts(executor: TorchExecutor, folder: Path) -> None:
    facts = executor.facts
    assert facts.groups == GROUPS
    assert facts.page_bytes == 3 * 2 * 2 * BLOCK * 16 * 4  # three layers, K and V, two heads
    fillers = isinstance(executor, GpuExecutor)  # a block for rows that are nobody's
    assert executor._cache.shape == (300 + fillers, facts.page_bytes)
    memory = inspect(EngineConfig(dtype="float32", block_size=BLOCK, num_blocks=300), folder).memory
    assert (memory.page_bytes, memory.num_groups) == (facts.page_bytes, 4)


@pytest.mark.parametrize("batch_invariant", [False, True])
@pytest.mark.parametrize("kernels", ALL)
def test_mixed_batches_give_transformers_tokens(folder: Path, kernels: str, batch_invariant: bool) -> None:
    runner, reference = runner_of(build(folder, kernels, batch_invariant)), load_reference(folder)
    lines = {name: runner.add(name, prompt_of(3 + 14 * name, seed=name)) for name in range(5)}
    for step in range(40):
        counts = {}
        for name, line in lines.items():
            if step >= 2 * name:
                counts[name] = min(len(line.tokens) - line.computed, 1 + (step + name) % 8)
        runner.step(counts)
    for line in lines.values():
        assert len(line.output) > 15
        assert HOLE not in line.tables[0]
        assert line.tables[1][: len(line.tables[1]) - 4] == [HOLE] * (len(line.tables[1]) - 4)
        with torch.inference_mode():
            logits = reference(torch.tensor([line.tokens])).logits[0]
        for position in range(line.num_prompt, len(line.tokens)):
            row = logits[position - 1]
            assert row.max() - row[line.tokens[position]] <= 1e-4
    finish(runner)


def test_attention_is_planned_once_a_group_and_step(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not once a layer: layers of several groups take turns."""
    from octavo.kernels.cpu.attention import plan as plans

    planned: list[int | None] = []

    def make_plan(batch: Any, cache: Any, num_heads: int, window: int | None, *rest: Any) -> plans.Plan:
        planned.append(window)
        return plan(batch, cache, num_heads, window, *rest)

    plan = plans.make_plan
    monkeypatch.setattr(plans, "make_plan", make_plan)
    runner = runner_of(build(folder, "cpu"))
    runner.add("a", prompt_of(9))
    for count in (9, 1):
        planned.clear()
        runner.step({"a": count})
        assert sorted(planned, key=str) == [WINDOW] * 3 + [None]


def test_siblings_copy_the_shared_tail_of_each_group(executor: TorchExecutor) -> None:
    """The forks' tables come to the executor with holes in them."""
    spec, prompt = SamplingSpec(temperature=1.0, logprobs=1), prompt_of(26)
    runner = runner_of(executor)
    parent = runner.add("0", prompt, spec, seed=5)
    first = runner.step({"0": 26}, draws={"0": (0, 1, 2)})["0"].samples
    assert HOLE in parent.tables[1]
    for index in (1, 2):
        runner.fork("0", str(index), index, [*prompt, first[index].token])
    runner.step({"0": 1, "1": 1, "2": 1})
    for mine, other in zip(parent.tables, runner.lines["1"].tables, strict=True):
        assert mine[:6] == other[:6]
        assert mine[6] != other[6]
    for _ in range(14):
        runner.step({"0": 1, "1": 1, "2": 1})
    for index in range(3):
        expected = alone(executor, prompt, 16, spec=spec, seed=5, index=index)
        assert [first[index], *samples(runner, str(index))][-15:] == expected[-15:]
    finish(runner)


def test_swapped_blocks_come_back_with_holes(executor: TorchExecutor) -> None:
    prompt = prompt_of(31)
    expected = alone(executor, prompt, 12)
    runner = runner_of(executor)
    line = runner.add("a", prompt)
    for _ in range(5):
        runner.step({"a": len(line.tokens) - line.computed})
    places = [(group, place) for group in range(4) for place, block in enumerate(line.tables[group]) if block != HOLE]
    assert len(places) < sum(map(len, line.tables))
    out = tuple((line.tables[group][place], host) for host, (group, place) in enumerate(places))
    executor.collect(executor.submit(StepPlan(0, (), swap_out=out)))
    if isinstance(executor, GpuExecutor):  # pages may be leaving yet: only a plan's own writes wait for them
        executor._accelerator.synchronize()
    for block, _ in out:
        runner.spoil(block)
    for group, place in places:
        line.tables[group][place] = runner._take()
    line.sent = [0] * 4
    back = tuple((host, line.tables[group][place]) for host, (group, place) in enumerate(places))
    executor.collect(executor.submit(StepPlan(0, (), swap_in=back)))
    for _ in range(7):
        runner.step({"a": 1})
    assert samples(runner, "a") == expected


@pytest.mark.parametrize("seed", range(3))
def test_churn_changes_no_output(executor: TorchExecutor, seed: int) -> None:
    """Slots, blocks and batches change hands at random: each output has the bits of its solo run."""
    rng, runner = random.Random(seed), runner_of(executor, seed)
    spec = SamplingSpec(temperature=0.9, logprobs=1)
    for name in range(12):
        runner.add(name, prompt_of(rng.randint(1, 50), seed=100 * seed + name), spec, seed=name)
    finished = {}
    while runner.lines:
        resident = [name for name, line in runner.lines.items() if line.slot >= 0]
        waiting = [name for name, line in runner.lines.items() if line.slot < 0]
        for name in resident:
            if rng.random() < 0.04:
                runner.preempt(name)
        resident = [name for name in resident if runner.lines[name].slot >= 0]
        chosen = [*rng.sample(resident, rng.randint(0, len(resident))), *waiting[: rng.randint(0, len(runner.slots))]]
        room, counts = 96, {}  # as many tokens as the stand-in's largest step has
        for name in chosen:
            left = len(runner.lines[name].tokens) - runner.lines[name].computed
            counts[name] = rng.randint(1, left)
            room -= counts[name]
            if room < 0:
                del counts[name]
                break
        if counts:
            runner.step(counts)
        for name in chosen:
            if len(runner.lines[name].output) >= 10:
                finished[name] = samples(runner, name), runner.finish(name)
    finish(runner)
    for name, (drawn, line) in finished.items():
        assert drawn == alone(executor, line.tokens[: line.num_prompt], 10, spec=spec, seed=int(str(name)))
