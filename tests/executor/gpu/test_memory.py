"""What is left for blocks, by arithmetic, and by measuring on the stand-in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from executor.gpu.stand_in import StandIn, StandInOutOfMemoryError
from executor.gpu.stand_in_engine import settings_of, stand_in_executor
from hypothesis import assume, given
from hypothesis import strategies as st

from octavo import EngineConfig
from octavo.errors import ConfigError
from octavo.executor.gpu import executor as gpu_executor
from octavo.executor.gpu.memory import Profile, fitting, plan_gpu_memory
from octavo.executor.memory_plan import MemoryPlan
from octavo.plan import LayerGroup

GIB = 2**30
FOUND = Profile(total_bytes=80 * GIB, used_bytes=10 * GIB, step_bytes=2 * GIB, graph_bytes=GIB)


def plan(found: Profile = FOUND, page: int = 2**20, longest: int = 4096, groups: int = 1, **keywords) -> MemoryPlan:
    return plan_gpu_memory(
        found,
        weights_bytes=9 * GIB,
        page_bytes=page,
        model_max_len=longest,
        config=EngineConfig(**{"max_num_seqs": 4096} | keywords),
        groups=(LayerGroup(2),) * groups,
        host_bytes=16 * GIB,
    )


def test_the_pool_is_what_the_share_leaves() -> None:
    made = plan(gpu_memory_utilization=0.5)
    assert made.num_blocks == (40 - 10 - 2 - 1) * 1024 - 1  # one block is nobody's
    assert made.working_bytes == 4 * GIB
    assert made.available_bytes == 40 * GIB
    assert plan(gpu_memory_utilization=0.25).num_blocks == 7 * 1024 - 1
    assert plan(max_num_seqs=2).num_blocks == 2 * 256  # no more can be used
    assert plan(swap_space=16, memory_utilization=0.01).num_host_blocks == 16 * 1024


@given(
    total=st.integers(GIB, 100 * GIB),
    shares=st.tuples(*[st.floats(0.0, 0.5)] * 3),
    utilization=st.floats(0.1, 1.0),
    page=st.integers(2**10, 2**24),
    groups=st.integers(1, 3),
    num_blocks=st.none() | st.integers(1, 10**6),
)
def test_nothing_goes_beyond_the_share(total, shares, utilization, page, groups, num_blocks) -> None:
    found = Profile(total, *(int(share * total) for share in shares))
    try:
        made = plan(found, page, groups=groups, gpu_memory_utilization=utilization, num_blocks=num_blocks)
    except ConfigError:
        assume(False)
        return
    assert found.taken_bytes + made.kv_bytes + page <= utilization * total
    assert made.num_blocks >= groups
    assert num_blocks is None or made.num_blocks == num_blocks


def test_what_does_not_fit_says_what_takes_how_much_and_what_helps() -> None:
    with pytest.raises(
        ConfigError,
        match=r"gpu_memory_utilization=0\.15 allows 12\.0 GiB of the GPU's 80\.0 GiB, and there is no room for one KV "
        r"block: 10\.0 GiB is taken \(of it 9\.0 GiB by the weights\), the largest step takes 2\.0 GiB more and graphs "
        r"1\.0 GiB; raise it, lower max_num_batched_tokens=2048 or max_num_seqs=4096",
    ):
        plan(gpu_memory_utilization=0.15)
    with pytest.raises(ConfigError, match=r"num_blocks=70000 takes 68\.4 GiB and 59\.0 GiB is free after .*to 60415"):
        plan(num_blocks=70_000)
    with pytest.raises(ConfigError, match=r"max_model_len=4096 cannot be served: .* raise gpu_memory_utilization, or"):
        plan(max_model_len=4096, page=2**30, gpu_memory_utilization=0.2)
    with pytest.raises(ConfigError, match=r"swap_space=17 GiB is more than the 16\.0 GiB free on the host"):
        plan(swap_space=17)
    with pytest.raises(ConfigError, match="max_model_len=5000 exceeds the model's own 4096"):
        plan(max_model_len=5000)


def test_what_runs_out_of_memory_while_it_is_tried_is_a_matter_of_configuration() -> None:
    device = StandIn()

    def fail(error: Exception) -> Callable[[], None]:
        def work() -> None:
            raise error

        return work

    with pytest.raises(
        ConfigError, match=r"stand-in has 80\.0 GiB of memory, .* suffice to dance: sit \(out of memory"
    ):
        fitting(device, "dance", "sit", fail(StandInOutOfMemoryError("out of memory")))
    with pytest.raises(ValueError, match="other"):
        fitting(device, "dance", "sit", fail(ValueError("other")))
    assert fitting(device, "dance", "sit", lambda: 5) == 5


class Watched(StandIn):
    """Measures what tensors would not tell on a CPU: the rows that norms were called with."""

    def peak(self) -> int:
        return self.allocated_bytes + 3 * GIB


@pytest.mark.parametrize("model", [{}, {"num_hidden_layers": 2, "sliding_window": 10}])
def test_the_executor_measures_and_takes_the_rest(checkpoint: Callable[..., Path], model: dict[str, int]) -> None:
    kind = "gemma2" if model else "llama"
    folder, device = checkpoint(kind, **model), Watched(total=10 * GIB, used=GIB)
    device.graph_bytes = 2**20
    settings = settings_of(num_blocks=None, max_num_batched_tokens=24, max_num_seqs=6, max_model_len=40)
    config = EngineConfig(model=str(folder), **settings)
    made = stand_in_executor(config, folder, device)
    # Captured to measure: batches of 6 and of 1; the ladder has sizes 1, 2, 4, 6.
    graphs = (2 + 3) * 2**20
    assert len(device.graphs) == 2
    taken = made.memory_plan.weights_bytes + made.memory_plan.working_bytes
    trial = 2 * 2**20  # of the stand-in, whose memory does not come back
    groups = len(made.facts.groups)
    pool = (groups * 7 + 1) * made.facts.page_bytes  # 24 tokens and one more, in blocks of 4
    assert taken == GIB + trial - pool + 3 * GIB + graphs
    assert made.facts.max_model_len == 40
    assert made.facts.num_blocks == made.memory_plan.num_blocks == len(made._cache) - 1
    made.close()
    # The same memory, but nothing left of it: refused in words, before anybody waits for a step.
    with pytest.raises(ConfigError, match=r"gpu_memory_utilization=0\.3 allows .* no room for one KV block"):
        stand_in_executor(replace(config, gpu_memory_utilization=0.3), folder, Watched(total=10 * GIB, used=GIB))


def test_a_step_too_large_for_the_device_is_refused_at_the_start(checkpoint: Callable[..., Path]) -> None:
    folder, device = checkpoint("llama"), StandIn()
    device.most_rows = 16
    config = EngineConfig(model=str(folder), **settings_of(max_num_batched_tokens=24, max_num_seqs=6))
    with pytest.raises(
        ConfigError, match="compute the largest step: lower max_num_batched_tokens=24 or max_num_seqs=6"
    ):
        stand_in_executor(config, folder, device)
    stand_in_executor(replace(config, max_num_batched_tokens=16), folder, device).close()


def test_a_context_of_two_tokens_is_measured_too(checkpoint: Callable[..., Path]) -> None:
    folder = checkpoint("llama")
    for changes in ({"max_model_len": 2}, {"max_num_batched_tokens": 1}, {"max_num_seqs": 1}, {"block_size": 1}):
        config = EngineConfig(model=str(folder), **settings_of(**({"max_num_batched_tokens": 9} | changes)))
        assert stand_in_executor(config, folder).facts.num_blocks == 400


def test_what_was_made_for_the_trial_is_gone(checkpoint: Callable[..., Path]) -> None:
    folder = checkpoint("llama")
    config = EngineConfig(model=str(folder), **settings_of(max_num_batched_tokens=9, max_num_seqs=3))
    made = stand_in_executor(config, folder)
    assert made._ladder.captured == ()
    assert (made._slots.seq_id == -1).all()
    assert set(gpu_executor._BUILT) <= made.__dict__.keys()
    made.close()
    assert not set(gpu_executor._BUILT) & made.__dict__.keys()
