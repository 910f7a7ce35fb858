"""What an engine counts, beside what a recorder saw and what the memory looks like."""

from __future__ import annotations

from pathlib import Path

import pytest
from engine_case import Wrapped, oracle_engine

from octavo import LLMEngine, SamplingParams
from octavo.engine import EngineStats
from octavo.simulator.oracle import OracleExecutor


def test_counts(tiny_llama: Path) -> None:
    with oracle_engine(tiny_llama, max_num_batched_tokens=16) as engine:
        prompt = list(range(30))
        engine.generate([prompt], max_tokens=6)
        stats = engine.stats()
        assert stats.num_steps == 2 + 5  # the prompt in two chunks, the last of which draws
        assert stats.num_computed_tokens == 30 + 5
        assert stats.num_generated_tokens == 6
        assert (stats.num_cached_tokens, stats.num_copies, stats.num_preemptions) == (0, 0, 0)
        assert stats.peak_blocks == 9
        engine.generate([prompt], n=3, max_tokens=4)
        stats = engine.stats()
        assert stats.num_cached_tokens == 28
        assert stats.num_copies == 2
        assert stats.num_generated_tokens == 6 + 3 * 4
        engine.reset_stats()
        assert engine.stats() == EngineStats()


def test_the_second_tier(tiny_llama: Path) -> None:
    class Hosted(Wrapped):
        def __init__(self, inner: OracleExecutor) -> None:
            facts = inner.facts
            oracle = OracleExecutor(
                facts.num_blocks,
                inner.block_size,
                num_host_blocks=64,
                vocab_size=facts.vocab_size,
                max_model_len=facts.max_model_len,
            )
            super().__init__(oracle, page_bytes=2**24)

    with oracle_engine(tiny_llama, executor=Hosted, num_blocks=16, swap_space=1.0, host_cache=True) as engine:
        prompts = [[place] * 41 for place in (1, 2, 1)]
        for prompt in prompts:
            engine.generate([prompt], max_tokens=2)
        stats = engine.stats()
        assert stats.num_demoted == stats.num_swapped_out > 0
        assert stats.num_promoted == stats.num_swapped_in > 0
        assert stats.num_cached_tokens == 40
        engine.reset_stats()
        assert (engine.stats().num_demoted, engine.stats().num_promoted) == (0, 0)


def test_preemptions_and_evictions(tiny_llama: Path) -> None:
    with oracle_engine(tiny_llama, num_blocks=16) as engine:
        outputs = engine.generate([[place] * 10 for place in range(4)], max_tokens=30)
        assert engine.stats().num_preemptions == sum(output.metrics.num_preemptions for output in outputs) > 0
        assert engine.stats().num_evicted > 0
        assert engine.stats().peak_blocks == 16
        engine.reset_stats()
        assert engine.stats().num_preemptions == 0


def test_a_preempted_requests_own_blocks_are_no_cache_hit(tiny_llama: Path) -> None:
    with oracle_engine(tiny_llama, num_blocks=16, max_num_batched_tokens=8) as engine:
        outputs = engine.generate([[place] * 25 for place in range(3)], max_tokens=30)
        assert sum(output.metrics.num_preemptions for output in outputs) > 0
        assert [output.metrics.num_cached_tokens for output in outputs] == [0, 0, 0]


def test_utilisation_is_that_of_the_snapshots(tiny_llama: Path) -> None:
    with oracle_engine(tiny_llama) as engine:
        for place in range(6):
            engine.add_request([place] * (3 + 5 * place), SamplingParams(max_tokens=10 + place))
        seen = []
        while engine.has_unfinished():
            engine.step()
            seen.append(engine.memory_snapshot().utilisation)
        assert engine.stats().num_steps == len(seen)
        assert engine.stats().kv_utilisation == pytest.approx(sum(seen) / len(seen))
        assert 0.7 < engine.stats().kv_utilisation < 1.0
    assert EngineStats().kv_utilisation == 1.0


def test_the_snapshot_says_whose_every_block_is(engine: LLMEngine) -> None:
    engine.add_request(list(range(2, 12)), SamplingParams(n=2, seed=1, max_tokens=8, ignore_eos=True), request_id="a")
    for _ in range(3):
        engine.step()
    first, second = engine.scheduler.requests["a"].live
    snapshot = engine.memory_snapshot()
    assert snapshot.block_size == 4
    assert snapshot.num_shared == 2  # the prompt's full blocks
    assert sum(owner == (first.id, second.id) for owner in snapshot.owner) == 2
    assert sum(owner == (first.id,) for owner in snapshot.owner) == 1
    assert sum(owner == (second.id,) for owner in snapshot.owner) == 1
    assert snapshot.num_used == 4
    assert snapshot.filled_slots == 8 + 4 + 4
    assert snapshot.utilisation == 1.0
    assert snapshot.num_used + snapshot.num_cached + snapshot.num_free == 300
    engine.abort_request("a")
    after = engine.memory_snapshot()
    assert (after.num_used, after.num_shared, after.filled_slots) == (0, 0, 0)
    assert after.num_cached == len(after.cached) == 4  # the last of each was full and published
    assert engine.reset_prefix_cache() == 4
    assert engine.memory_snapshot().num_cached == 0


def test_guesses(tiny_llama: Path) -> None:
    """Of a make-believe model that knows one token: whatever is guessed comes true."""

    class One(Wrapped):
        def __init__(self, inner: OracleExecutor) -> None:
            facts = inner.facts
            one = OracleExecutor(
                facts.num_blocks, inner.block_size, vocab_size=facts.vocab_size, max_model_len=facts.max_model_len,
                token_of=lambda init, index: 100,
            )  # fmt: skip
            super().__init__(one)

    with oracle_engine(tiny_llama, executor=One, speculative="ngram", speculative_tokens=3, row_cost=0.0) as engine:
        output = engine.generate([[100] * 6], max_tokens=21, logprobs=0)[0]
        stats = engine.stats()
        assert stats.num_generated_tokens == 21
        assert stats.num_steps == 1 + 21 - 1 - stats.num_accepted_tokens
        assert stats.num_accepted_tokens == stats.num_drafted_tokens == 14  # 1 + 3 + 4 * 4 + 1
        assert stats.num_computed_tokens == 6 + 20
        assert (output.metrics.num_drafted_tokens, output.metrics.num_accepted_tokens) == (14, 14)
        # A stop string in the middle of what one step brought: what came after it is nowhere to be seen.
        letter = engine.tokenizer.decode([100])
        output = engine.generate([[100] * 6], max_tokens=21, logprobs=0, stop=[letter * 6])[0]
        assert output.outputs[0].token_ids == [100] * 6
        assert output.outputs[0].logprobs == [{100: -0.5}] * 6
        assert output.outputs[0].cumulative_logprob == -3.0
        assert (output.text, output.outputs[0].finish_reason) == ("", "stop")
        engine.scheduler.memory.audit([])
