"""Hand-made plans through a real executor on a small random model, compared with transformers and with themselves."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from checkpoints import load_reference
from executor.gpu.stand_in_engine import settings_of, stand_in_executor
from plan_runner import GREEDY, PlanRunner, pending

from octavo.config import EngineConfig
from octavo.errors import ConfigError, EngineError
from octavo.executor.factory import create_executor
from octavo.executor.gpu.executor import GpuExecutor
from octavo.executor.sampler import NOT_FINITE
from octavo.executor.torch_executor import TorchExecutor
from octavo.plan import Chunk, ChunkResult, SamplingSpec, SlotInit, StepPlan, Want

BLOCK = 4
SLOTS = 12


def build(folder: Path, **keywords) -> TorchExecutor:
    settings = {
        "dtype": "float32",
        "kernels": "reference",
        "block_size": BLOCK,
        "num_blocks": 400,
        "max_num_seqs": SLOTS,
        "swap_space": 0.01,
        "batch_invariant": True,
        "num_threads": 1,
    }
    return create_executor(EngineConfig(**(settings | keywords)), folder)


STAND_IN = "stand-in"
"""The GPU's executor, on the stand-in for a GPU."""


@pytest.fixture(scope="module", params=["cpu", "reference", STAND_IN])
def executor(tiny_llama: Path, request: pytest.FixtureRequest) -> TorchExecutor | GpuExecutor:
    if request.param != STAND_IN:
        return build(tiny_llama, kernels=request.param)
    settings = settings_of(block_size=BLOCK, num_blocks=400, max_num_seqs=SLOTS, swap_space=0.01)
    return stand_in_executor(EngineConfig(**settings), tiny_llama)


@pytest.fixture
def runner(executor: TorchExecutor) -> Iterator[PlanRunner]:
    made = PlanRunner(executor, BLOCK, SLOTS)
    yield made
    for name in list(made.lines):
        made.finish(name)
    executor.collect(executor.submit(StepPlan(0, (), released=tuple(made.released))))


@pytest.fixture(scope="module")
def reference(tiny_llama: Path):
    return load_reference(tiny_llama)


def prompt_of(length: int, seed: int = 0) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(2, 384) for _ in range(length)]


def continue_alone(executor: TorchExecutor, prompt: list[int], number: int, **keywords) -> list[int]:
    runner = PlanRunner(executor, BLOCK, SLOTS, seed=99)
    line = runner.add("alone", prompt, **keywords)
    for _ in range(number):
        runner.step({"alone": len(line.tokens) - line.computed})
    runner.finish("alone")
    return line.output


def greedy_by(reference, tokens: list[int], num_prompt: int) -> None:
    """The teacher-forced rule: each new token is the reference's best, or within 1e-4 of it."""
    with torch.inference_mode():
        logits = reference(torch.tensor([tokens])).logits[0]
    for position in range(num_prompt, len(tokens)):
        row = logits[position - 1]
        assert row.max() - row[tokens[position]] <= 1e-4


def test_the_facts_are_the_models(executor: TorchExecutor) -> None:
    facts = executor.facts
    assert (facts.num_blocks, facts.max_model_len, facts.vocab_size) == (400, 512, 384)
    assert facts.eos_token_ids == (1,)
    assert facts.page_bytes == 2 * 2 * 2 * BLOCK * 16 * 4
    assert [group.num_layers for group in facts.groups] == [2]


def test_a_prompt_whole_or_in_parts_gives_transformers_tokens(runner: PlanRunner, reference) -> None:
    prompt = prompt_of(37)
    whole = runner.add("whole", prompt)
    parts = runner.add("parts", prompt)
    for count in (37, *[1] * 20):
        runner.step({"whole": count})
    for count in (5, 7, 1, 11, 13, *[1] * 20):
        runner.step({"parts": count})
    assert whole.output == parts.output
    greedy_by(reference, whole.tokens, 37)


def test_mixed_batches_give_transformers_tokens(runner: PlanRunner, reference) -> None:
    lines = {name: runner.add(name, prompt_of(3 + 9 * name, seed=name)) for name in range(6)}
    for step in range(40):
        counts = {}
        for name, line in lines.items():
            left = len(line.tokens) - line.computed
            if step >= 2 * name:
                counts[name] = min(left, 1 + (step + name) % 8)
        runner.step(counts)
    for line in lines.values():
        assert len(line.output) > 15
        greedy_by(reference, line.tokens, line.num_prompt)


def test_chunks_that_want_nothing_return_nothing(runner: PlanRunner) -> None:
    runner.add("a", prompt_of(20))
    runner.add("b", prompt_of(20, seed=1))
    results = runner.step({"a": 9, "b": 20})
    assert results["a"] == ChunkResult()
    assert len(results["b"].samples) == 1
    assert runner.step({"a": 5})["a"] == ChunkResult()


def test_siblings_copy_on_write_and_draw_on(runner: PlanRunner, executor: TorchExecutor) -> None:
    spec, prompt = SamplingSpec(temperature=1.0), prompt_of(18)
    parent = runner.add("0", prompt, spec, seed=5)
    samples = runner.step({"0": 18}, draws={"0": (0, 1, 2)})["0"].samples
    assert len({sample.token for sample in samples}) > 1
    for index in (1, 2):
        runner.fork("0", str(index), index, [*prompt, samples[index].token])
    for _ in range(15):
        runner.step({"0": 1, "1": 1, "2": 1})
    for index in range(3):
        alone = continue_alone(executor, prompt, 16, spec=spec, seed=5, index=index)
        assert runner.lines[str(index)].output == alone
    assert parent.blocks[:4] == runner.lines["1"].blocks[:4]
    assert parent.blocks[4] != runner.lines["1"].blocks[4]


def test_a_pending_token_is_the_slots_own_last_sample(executor: TorchExecutor) -> None:
    prompt, spec = prompt_of(10), SamplingSpec(temperature=1.2, repetition_penalty=1.3, presence_penalty=0.4)
    expected = continue_alone(executor, prompt, 8, spec=spec, seed=3)

    class Pending:
        """Sends every decode chunk before its token is known to the planner."""

        facts = executor.facts
        collect = executor.collect

        def submit(self, plan: StepPlan):
            chunks = tuple(pending(chunk) if chunk.count == 1 else chunk for chunk in plan.chunks)
            return executor.submit(dataclasses.replace(plan, chunks=chunks))

    assert continue_alone(Pending(), prompt, 8, spec=spec, seed=3) == expected


def test_swapped_blocks_come_back(runner: PlanRunner, executor: TorchExecutor) -> None:
    prompt = prompt_of(21)
    expected = continue_alone(executor, prompt, 12)
    line = runner.add("a", prompt)
    for _ in range(5):
        runner.step({"a": len(line.tokens) - line.computed})
    old = list(line.blocks)
    out = tuple((block, 7 + place) for place, block in enumerate(old))
    executor.collect(executor.submit(StepPlan(0, (), swap_out=out)))
    if isinstance(executor, GpuExecutor):  # pages may be leaving yet: only a plan's own writes wait for them
        executor._accelerator.synchronize()
    executor._cache[old] = 77
    line.blocks[:] = [runner._take() for _ in old]
    line.sent = [0]
    back = tuple((host, block) for (_, host), block in zip(out, line.blocks, strict=True))
    executor.collect(executor.submit(StepPlan(0, (), swap_in=back)))
    for _ in range(7):
        runner.step({"a": 1})
    assert line.output == expected


@pytest.mark.parametrize("seed", range(3))
def test_churn_changes_no_output(tiny_llama: Path, executor: TorchExecutor, seed: int) -> None:
    """Slots, blocks and batches change hands at random: each output has the bits of its solo run."""
    rng = random.Random(seed)
    runner = PlanRunner(executor, BLOCK, SLOTS, seed=seed)
    specs = [
        GREEDY,
        SamplingSpec(temperature=0.9),
        SamplingSpec(temperature=1.1, top_p=0.8, frequency_penalty=0.5, logprobs=2),
        SamplingSpec(temperature=1.0, top_k=20, repetition_penalty=1.3, bad_words=((7, 9), (5,)), min_tokens=6),
        SamplingSpec(temperature=0.0, presence_penalty=1.5, logit_bias=((9, 4.0),), logprobs=0),
    ]
    finished = []
    for name in range(24):
        prompt = prompt_of(rng.randint(1, 30), seed=100 * seed + name)
        runner.add(name, prompt, dataclasses.replace(rng.choice(specs), stop_ids=(1, 3)), seed=name)
    while runner.lines:
        resident = [name for name, line in runner.lines.items() if line.slot >= 0]
        waiting = [name for name, line in runner.lines.items() if line.slot < 0]
        for name in resident:
            if rng.random() < 0.04:
                runner.preempt(name)
        resident = [name for name in resident if runner.lines[name].slot >= 0]
        chosen = [*rng.sample(resident, rng.randint(0, len(resident)))]
        chosen += waiting[: rng.randint(0, max(0, len(runner.slots)))]
        if not chosen:
            continue
        rng.shuffle(chosen)
        left = {name: len(runner.lines[name].tokens) - runner.lines[name].computed for name in chosen}
        runner.step({name: rng.randint(1, count) for name, count in left.items()})
        for name in chosen:
            if len(runner.lines[name].output) >= 10:
                finished.append(runner.finish(name))
    executor.collect(executor.submit(StepPlan(0, (), released=tuple(runner.released))))
    assert len(finished) == 24
    for line in finished:
        alone = PlanRunner(executor, BLOCK, SLOTS, seed=1)
        twin = alone.add("alone", line.tokens[: line.num_prompt], line.spec, seed=line.seed)
        for _ in range(10):
            alone.step({"alone": len(twin.tokens) - twin.computed})
        alone.finish("alone")
        drawn = [result.samples[0] for result in line.results if result.samples]
        assert drawn == [result.samples[0] for result in twin.results]
    assert sorted(runner.free) == list(range(400))


def test_logprobs_are_transformers(runner: PlanRunner, reference) -> None:
    prompt = prompt_of(15)
    line = runner.add("a", prompt, SamplingSpec(temperature=0.7, logprobs=4), seed=2)
    for count in (15, 1, 1, 1):
        runner.step({"a": count})
    with torch.inference_mode():
        expected = torch.log_softmax(reference(torch.tensor([line.tokens])).logits[0].double(), -1)
    for step, result in enumerate(line.results):
        sample, row = result.samples[0], expected[14 + step]
        assert sample.logprob == pytest.approx(row[sample.token].item(), abs=1e-4)
        assert [token for token, _ in sample.top] == row.topk(4).indices.tolist()
        assert [value for _, value in sample.top] == pytest.approx(row.topk(4).values.tolist(), abs=1e-4)


@pytest.mark.parametrize("pieces", [1, 3, 1000])
def test_prompt_logprobs_are_transformers(
    runner: PlanRunner, reference, pieces: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("octavo.executor.prompt_scores", "octavo.executor.gpu.prompt_scores"):
        monkeypatch.setattr(f"{module}.LOGITS_BYTES", 384 * 4 * pieces)
    prompt = prompt_of(29)
    runner.add("a", prompt, SamplingSpec(temperature=0.0, prompt_logprobs=3))
    runner.add("b", prompt_of(9, seed=4))
    found = []
    for count in (4, 13, 12):
        start = runner.lines["a"].computed
        results = runner.step(
            {"b": len(runner.lines["b"].tokens) - runner.lines["b"].computed, "a": count}, outputs_from={"a": start}
        )
        found.extend(results["a"].prompt)
        assert results["b"].prompt == ()
    assert [sample.token for sample in found] == prompt[1:]
    with torch.inference_mode():
        logits = reference(torch.tensor([prompt])).logits[0]
    expected = torch.log_softmax(logits.double(), -1)
    for sample, row in zip(found, expected, strict=False):
        assert sample.logprob == pytest.approx(row[sample.token].item(), abs=1e-4)
        assert [token for token, _ in sample.top] == row.topk(3).indices.tolist()
        assert [value for _, value in sample.top] == pytest.approx(row.topk(3).values.tolist(), abs=1e-4)
    assert runner.lines["a"].output == [int(logits[-1].argmax())]
    assert runner.step({"a": 1})["a"].prompt == ()


def test_beam_chunks_return_the_likeliest(runner: PlanRunner, reference) -> None:
    prompt = prompt_of(12)
    runner.add("a", prompt, SamplingSpec(temperature=0.0, top=6))
    runner.add("b", prompt, GREEDY)
    results = runner.step({"a": 12, "b": 12}, wants={"a": Want.LOGPROBS})
    with torch.inference_mode():
        row = torch.log_softmax(reference(torch.tensor([prompt])).logits[0, -1].double(), -1)
    assert results["a"].samples == ()
    assert [token for token, _ in results["a"].top] == row.topk(6).indices.tolist()
    assert [value for _, value in results["a"].top] == pytest.approx(row.topk(6).values.tolist(), abs=1e-4)
    assert results["b"].samples[0].token == results["a"].top[0][0]


def test_a_sequence_whose_memory_is_poisoned_fails_alone(runner: PlanRunner, executor: TorchExecutor) -> None:
    healthy, prompt = prompt_of(10), prompt_of(10, seed=1)
    expected = continue_alone(executor, healthy, 4)
    good, bad = runner.add("good", healthy), runner.add("bad", prompt)
    runner.step({"good": 10, "bad": 10})
    executor._kv[bad.blocks[0]] = float("nan")
    results = runner.step({"bad": 1, "good": 1})
    assert results["bad"] == ChunkResult(error=NOT_FINITE)
    executor._kv[bad.blocks[0]] = 0.0
    runner.finish("bad")
    runner.step({"good": 1})
    runner.step({"good": 1})
    assert good.output == expected


def test_a_prompt_that_cannot_be_scored_fails_alone(runner: PlanRunner, executor: TorchExecutor) -> None:
    bad = runner.add("bad", prompt_of(10), SamplingSpec(temperature=0.0, prompt_logprobs=1))
    runner.add("good", prompt_of(10, seed=1), SamplingSpec(temperature=0.0, prompt_logprobs=1))
    runner.step({"bad": 4, "good": 4}, outputs_from={"bad": 0, "good": 0})
    executor._kv[bad.blocks[0]] = float("nan")
    results = runner.step({"bad": 4, "good": 4}, outputs_from={"bad": 4, "good": 4})
    assert results["bad"] == ChunkResult(error=NOT_FINITE)
    assert results["good"].error is None
    assert len(results["good"].prompt) == 4
    executor._kv[bad.blocks[0]] = 0.0


def test_plans_that_do_not_follow_are_refused(executor: TorchExecutor) -> None:
    def chunk(**changes) -> Chunk:
        return Chunk(0, 7, 0, 2, (5, 6), (0,), ((3,),), 1, Want.SAMPLE, (0,))._replace(**changes)

    def run(*chunks: Chunk, init: tuple[SlotInit, ...] = ()) -> None:
        executor.submit(StepPlan(0, chunks, init=init))

    taken = SlotInit(0, 7, "r", 0, 0, 2, (5, 6), GREEDY)
    with pytest.raises(EngineError, match="slot 0 does not hold sequence 7"):
        run(chunk())
    with pytest.raises(EngineError, match="slot 12 does not exist"):
        run(init=(taken._replace(slot=12),))
    with pytest.raises(EngineError, match="count and its tokens disagree"):
        run(chunk(tokens=(5,)), init=(taken,))
    with pytest.raises(EngineError, match="keeps more blocks"):
        run(chunk(blocks_from=(1,)), init=(taken,))
    with pytest.raises(EngineError, match="do not reach position 1"):
        run(chunk(blocks=((),)), init=(taken,))
    with pytest.raises(EngineError, match="waits for a sample"):
        run(chunk(tokens=(5, -1)), init=(taken,))
    with pytest.raises(EngineError, match="the longest has 128"):
        run(chunk(blocks=(tuple(range(129)),)), init=(taken,))
    executor.submit(StepPlan(0, (), released=(0,)))


def test_the_context_that_fits_is_served(tiny_llama: Path) -> None:
    facts = build(tiny_llama, num_blocks=10).facts
    assert (facts.num_blocks, facts.max_model_len) == (10, 40)
    assert "context cut from 512 to 40 tokens: the pool holds 10 blocks of 4" in facts.notes
    with pytest.raises(ConfigError, match="max_model_len=100"):
        build(tiny_llama, num_blocks=10, max_model_len=100)


def test_without_num_blocks_the_largest_batch_fits(tiny_llama: Path) -> None:
    assert build(tiny_llama, num_blocks=None, max_num_seqs=3).facts.num_blocks == 3 * 512 // BLOCK


def test_a_closed_executor_holds_no_memory(tiny_llama: Path) -> None:
    made = build(tiny_llama)
    made.close()
    made.close()
    assert not any(isinstance(value, torch.Tensor) for value in vars(made).values())
    with pytest.raises(EngineError, match="the executor is closed"):
        made.submit(StepPlan(0, ()))


@pytest.mark.parametrize("family", ["mistral", "qwen2", "qwen3", "gemma2", "gemma3"])
def test_every_family_runs(checkpoint: Callable[..., Path], family: str) -> None:
    overrides = {"qwen2": {}, "qwen3": {"head_dim": 24}}.get(family, {"sliding_window": 8})
    folder = checkpoint(family, **overrides)
    made, prompt = build(folder), prompt_of(30)
    output = continue_alone(made, prompt, 10)
    greedy_by(load_reference(folder), [*prompt, *output], 30)
