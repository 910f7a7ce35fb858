"""The loop by hand: requests beside one another, withdrawals, interruptions, failures, and the end."""

from __future__ import annotations

import random
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from engine_case import Wrapped, assert_clean, finish, oracle_engine

from octavo import LLM, EngineConfig, LLMEngine, SamplingParams
from octavo.errors import EngineError, UnknownRequestError
from octavo.plan import StepPlan
from octavo.recorder import RunLog, read_log
from octavo.recorder.run_log import scheduler_config
from octavo.simulator.oracle import OracleExecutor

DRAWN = SamplingParams(seed=9, max_tokens=20, ignore_eos=True)


def test_steps_return_what_has_changed(engine: LLMEngine) -> None:
    expected = engine.generate(["A", "B"], DRAWN)
    first = engine.add_request("A", DRAWN)
    engine.step()
    second = engine.add_request("B", DRAWN, request_id="b", user="someone")
    assert second == "b"
    texts: dict[str, str] = {}
    ended = {}
    while engine.has_unfinished():
        for output in engine.step():
            assert output.text.startswith(texts.get(output.request_id, ""))
            texts[output.request_id] = output.text
            assert output.finished == (output.outputs[0].finish_reason is not None)
            if output.finished:
                ended[output.request_id] = output
    assert texts == {first: expected[0].text, second: expected[1].text}
    assert ended.keys() == texts.keys()


def test_generate_beside_a_request_by_hand(engine: LLMEngine) -> None:
    expected = engine.generate(["A", "B"], DRAWN)
    name = engine.add_request("A", DRAWN)
    engine.step()
    other = engine.generate("B", DRAWN, max_tokens=5)[0]
    assert other.outputs[0].token_ids == expected[1].outputs[0].token_ids[:5]
    kept = engine.step()  # what generate() saw of it, and this step's
    assert [output.request_id for output in kept] == [name]
    assert len(kept[0].outputs[0].token_ids) == 7
    assert finish(engine)[name].text == expected[0].text


def test_outputs_that_ended_meanwhile_are_delivered_once(engine: LLMEngine) -> None:
    name = engine.add_request("A", DRAWN)
    engine.generate("B", DRAWN, max_tokens=40)
    assert engine.has_unfinished()
    outputs = engine.step()
    assert [(output.request_id, output.finished) for output in outputs] == [(name, True)]
    assert not engine.has_unfinished()
    assert engine.step() == []


def test_abort_returns_the_request_as_it_stood(engine: LLMEngine) -> None:
    whole = engine.generate("A", DRAWN)[0].outputs[0].token_ids
    name = engine.add_request("A", DRAWN)
    for _ in range(5):
        engine.step()
    output = engine.abort_request(name)
    assert output.finished
    assert output.outputs[0].finish_reason == "abort"
    assert output.outputs[0].token_ids == whole[:5]
    assert output.metrics.finished >= output.metrics.first_token
    assert not engine.has_unfinished()
    with pytest.raises(UnknownRequestError, match=f"no live request has the id '{name}'"):
        engine.abort_request(name)
    waiting = engine.add_request("B", DRAWN)  # before its first step
    assert engine.abort_request(waiting).outputs[0].token_ids == []


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("seed", range(5))
def test_aborts_at_any_moment_leave_the_others_alone(tiny_llama: Path, seed: int, depth: int) -> None:
    rng = random.Random(seed)
    with oracle_engine(tiny_llama, depth=depth, num_blocks=25, max_num_batched_tokens=9) as engine:
        prompts = [rng.choices(range(384), k=rng.randint(1, 20)) for _ in range(12)]
        kinds = [
            SamplingParams(max_tokens=18),
            SamplingParams(n=2, max_tokens=9),
            SamplingParams(best_of=3, max_tokens=7),
            SamplingParams(n=2, beam_width=2, max_tokens=6),
        ]
        every = [rng.choice(kinds) for _ in prompts]
        expected = [output.outputs for output in engine.generate(prompts, every)]
        names = [engine.add_request(prompt, params) for prompt, params in zip(prompts, every, strict=True)]
        aborted = set()
        ended: dict[str, Any] = {}
        while engine.has_unfinished():
            for output in engine.step():
                if output.finished:
                    ended[output.request_id] = output.outputs
            if rng.random() < 0.2 and engine.scheduler.requests:
                name = rng.choice(list(engine.scheduler.requests))
                engine.abort_request(name)
                aborted.add(name)
        assert 0 < len(aborted) < 12
        assert ended.keys() == set(names) - aborted
        for name, outputs in zip(names, expected, strict=True):
            if name not in aborted:
                assert ended[name] == outputs
        assert_clean(engine)


class Interrupted(Wrapped):
    """Presses Ctrl-C in the middle of its tenth step."""

    steps = 0

    def submit(self, plan: StepPlan) -> Any:
        self.steps += 1
        if self.steps == 10:
            signal.raise_signal(signal.SIGINT)
        return self.inner.submit(plan)


@pytest.mark.parametrize("depth", [0, 1])
def test_ctrl_c_in_generate_leaves_nothing_behind(tiny_llama: Path, depth: int) -> None:
    handler = signal.getsignal(signal.SIGINT)
    with oracle_engine(tiny_llama, executor=Interrupted, depth=depth) as engine:
        with pytest.raises(KeyboardInterrupt):
            engine.generate(["A king", "A queen", "A fox"], max_tokens=50)
        assert_clean(engine)
        assert signal.getsignal(signal.SIGINT) is handler
        assert engine._executor.steps < 13  # type: ignore[attr-defined]
        assert len(engine.generate("A king", max_tokens=50)[0].outputs[0].token_ids) == 50
        assert_clean(engine)


def test_ctrl_c_in_a_stream_leaves_nothing_behind(tiny_llama: Path) -> None:
    with oracle_engine(tiny_llama, executor=Interrupted) as engine:
        with pytest.raises(KeyboardInterrupt):
            list(LLM.over(engine).stream("A king", DRAWN))
        assert_clean(engine)


def test_a_second_ctrl_c_does_not_wait(tiny_llama: Path) -> None:
    class Impatient(Wrapped):
        def submit(self, plan: StepPlan) -> Any:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            raise AssertionError("never reached")

    engine = oracle_engine(tiny_llama, executor=Impatient)
    with pytest.raises(KeyboardInterrupt):
        engine.generate("A king", DRAWN)
    with pytest.raises(EngineError, match="the engine cannot go on"):  # half a step was done
        engine.generate("A king", DRAWN)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_loses_nothing_of_a_request_by_hand(tiny_llama: Path) -> None:
    with oracle_engine(tiny_llama, executor=Interrupted) as engine:
        name = engine.add_request("A king", DRAWN)
        for tokens in range(1, 10):
            assert [len(output.outputs[0].token_ids) for output in engine.step()] == [tokens]
        with pytest.raises(KeyboardInterrupt):
            engine.step()
        assert [len(output.outputs[0].token_ids) for output in engine.step()] == [11]
        assert len(finish(engine)[name].outputs[0].token_ids) == 20
        assert_clean(engine)


def test_an_ignored_ctrl_c_stays_ignored(tiny_llama: Path) -> None:
    """A shell's background job inherits that SIGINT is ignored; holding it must not make it count, even twice."""

    class Insistent(Wrapped):
        def submit(self, plan: StepPlan) -> Any:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            return self.inner.submit(plan)

    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with oracle_engine(tiny_llama, executor=Insistent) as engine:
            assert len(engine.generate("A king", max_tokens=5)[0].outputs[0].token_ids) == 5
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_steps_off_the_main_thread(tiny_llama: Path) -> None:
    """Where Python delivers no signals, no handler is touched."""
    with oracle_engine(tiny_llama) as engine:
        texts: list[str] = []
        thread = threading.Thread(target=lambda: texts.append(engine.generate("A king", DRAWN)[0].text))
        thread.start()
        thread.join()
        assert texts == [engine.generate("A king", DRAWN)[0].text]


def test_interrupted_by_a_progress_display(engine: LLMEngine) -> None:
    class Impatient:
        def update(self, finished: int, total: int, generated_tokens: int) -> None:
            if generated_tokens > 10:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.generate(["A", "B"], DRAWN, progress=Impatient())
    assert not engine.has_unfinished()


def test_withdrawn_by_a_progress_display(engine: LLMEngine) -> None:
    class Merciless:
        def update(self, finished: int, total: int, generated_tokens: int) -> None:
            if generated_tokens > 10:
                for name in list(engine.scheduler.requests):
                    engine.abort_request(name)

    outputs = engine.generate(["A", "B"], DRAWN, progress=Merciless())
    assert [output.outputs[0].finish_reason for output in outputs] == ["abort", "abort"]
    assert [len(output.outputs[0].token_ids) for output in outputs] == [6, 6]


def test_logits_that_are_not_finite_fail_one_request_alone(tiny_llama: Path) -> None:
    with oracle_engine(tiny_llama, failing=frozenset({"bad"})) as engine:
        expected = engine.generate("A king", DRAWN)[0].text
        engine.add_request("A fox", SamplingParams(n=2, max_tokens=9), request_id="bad")
        engine.add_request("A king", DRAWN, request_id="good")
        ended = finish(engine)
        assert {each.finish_reason for each in ended["bad"].outputs} == {"error"}
        assert ended["bad"].error == "the logits are not finite"
        assert ended["good"].text == expected
        assert_clean(engine)


class Broken(Wrapped):
    def submit(self, plan: StepPlan) -> Any:
        if plan.step == 5:
            raise RuntimeError("out of paper")
        return self.inner.submit(plan)


def test_an_executor_that_fails_ends_the_engine_with_its_reason(tiny_llama: Path) -> None:
    engine = oracle_engine(tiny_llama, executor=Broken)
    with pytest.raises(EngineError, match="a step failed: out of paper"):
        engine.generate("A king", DRAWN)
    assert not engine.scheduler.requests
    for attempt in (engine.step, lambda: engine.add_request("A"), lambda: engine.generate("A")):
        with pytest.raises(EngineError, match="the engine cannot go on: out of paper"):
            attempt()
    engine.close()


def test_a_closed_engine_says_so(tiny_llama: Path) -> None:
    engine = oracle_engine(tiny_llama)
    name = engine.add_request("A king", DRAWN)
    engine.step()
    engine.close()
    assert name not in engine.scheduler.requests
    with pytest.raises(EngineError, match="it was closed"):
        engine.add_request("A king")
    with pytest.raises(EngineError, match="it was closed"):
        engine.step()


def test_a_run_log_holds_every_plan(tiny_llama: Path, tmp_path: Path) -> None:
    executor = OracleExecutor(60, 4, vocab_size=384, max_model_len=240)
    config = EngineConfig(model=str(tiny_llama), block_size=4, num_blocks=60)
    with RunLog(tmp_path / "run.jsonl") as log, LLMEngine(config, recorder=log, executor=executor) as engine:
        engine.generate("A king", DRAWN)
    header, written = read_log(tmp_path / "run.jsonl")
    plans = list(written)
    assert scheduler_config(header) == engine.scheduler.config
    assert [plan.step for plan in plans] == list(range(20))
    assert plans[0].num_tokens == len(engine.tokenizer.encode("A king"))
    assert all(plan.num_tokens == 1 for plan in plans[1:])


def test_urgent_requests_go_first(tiny_llama: Path) -> None:
    with oracle_engine(tiny_llama, policy="priority", max_num_seqs=1, ageing_seconds=1000.0) as engine:
        order = []
        for name, priority in (("late", 2), ("plain", 0), ("urgent", -1)):
            engine.add_request("A king", SamplingParams(max_tokens=3), request_id=name, priority=priority)
        while engine.has_unfinished():
            order += [output.request_id for output in engine.step() if output.finished]
        assert order == ["urgent", "plain", "late"]


def test_salts_keep_prefixes_apart(tiny_llama: Path) -> None:
    prompt = list(range(40))
    with oracle_engine(tiny_llama) as engine:

        def cached(salt: str | None) -> int:
            name = engine.add_request(prompt, SamplingParams(max_tokens=1), cache_salt=salt)
            return finish(engine)[name].metrics.num_cached_tokens

        assert [cached(salt) for salt in (None, None, "a", "b", "a", None)] == [0, 36, 0, 0, 36, 36]
        assert engine.reset_prefix_cache() == 30
        assert cached("a") == 0
