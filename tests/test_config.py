"""What can be set is checked when it is set, and frozen."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from octavo import EngineConfig, memory
from octavo.config import COMPUTE_SPEED, EVICTIONS, STEP_COSTS, SchedulerConfig
from octavo.errors import ConfigError
from octavo.plan import LayerGroup, ModelFacts
from octavo.presets import PRESETS

WRONG: list[tuple[str, Any, str]] = [
    ("model", "", "model must be a non-empty string"),
    ("model", 5, "model must be"),
    ("revision", "", "revision must be"),
    ("tokenizer", 5, "tokenizer must be"),
    ("dtype", "float8", "use one of auto, float32"),
    ("dtype", None, "dtype=None is unknown"),
    ("kv_cache_dtype", "fp8", "kv_cache_dtype='fp8' is unknown: use one of auto, int8"),
    ("quantization", "fp8", "quantization='fp8' is unknown: use one of int8, int4"),
    ("device", "cuda:0", "device='cuda:0' is unknown"),
    ("gpu_memory_utilization", 0, "gpu_memory_utilization=0 must be above 0"),
    ("cuda_graphs", 1, "cuda_graphs must be True or False"),
    ("kernels", "magic", "kernels='magic' is unknown"),
    ("linear_kind", "magic", "linear_kind='magic' is unknown: use one of auto, measure, plain"),
    ("block_size", 0, "block_size=0 is out of range"),
    ("block_size", 16.0, "block_size must be an integer"),
    ("block_size", True, "block_size must be an integer"),
    ("num_blocks", 0, "num_blocks=0"),
    ("memory_utilization", 0.0, "memory_utilization=0.0 must be above 0"),
    ("memory_utilization", 1.5, "memory_utilization=1.5"),
    ("memory_utilization", float("nan"), "memory_utilization=nan"),
    ("max_num_seqs", 0, "max_num_seqs=0"),
    ("max_num_batched_tokens", 0, "max_num_batched_tokens=0"),
    ("max_model_len", 1, "max_model_len=1"),
    ("policy", "random", "use one of fcfs, priority, srpt, fair"),
    ("victims", "mru", "use one of rank, lru, none"),
    ("ageing_seconds", 0.0, "ageing_seconds=0.0 must be a positive"),
    ("ageing_seconds", float("inf"), "ageing_seconds=inf"),
    ("swap_space", -1, "swap_space=-1 must be a number of GiB from 0"),
    ("swap_space", float("nan"), "swap_space=nan"),
    ("swap_space", 2**36, "to 65,536"),
    ("swap_space", "4GiB", "swap_space='4GiB'"),
    ("swap_space", True, "swap_space=True"),
    ("preemption", "drop", "use one of auto, swap, recompute"),
    ("link_bandwidth", 0, "link_bandwidth=0 must be a positive number"),
    ("compute_speed", -1.0, "compute_speed=-1.0 must be a positive number"),
    ("batching", "dynamic", "use one of continuous, static"),
    ("eviction", "mru", "use one of lru, fifo, lfu"),
    ("host_cache", 1, "host_cache must be True or False"),
    ("host_cache", True, "host_cache=True needs host memory (swap_space above 0)"),
    ("prefix_caching", 1, "prefix_caching must be True or False"),
    ("batch_invariant", "yes", "batch_invariant must be True or False"),
    ("retained_requests", -1, "retained_requests=-1"),
    ("depth", 2, "depth=2 is out of range: use 0 to 1"),
    ("speculative", "eagle", "speculative='eagle' is unknown: use one of ngram"),
    ("speculative_tokens", 0, "speculative_tokens=0 is out of range"),
    ("ngram_max", 0, "ngram_max=0"),
    ("ngram_min", 5, "ngram_min=5 is out of range: use 1 to 4"),
    ("row_cost", -0.5, "row_cost=-0.5 must be a number of 0 or more"),
    ("row_cost", float("nan"), "row_cost=nan"),
    ("num_threads", 0, "num_threads=0"),
    ("seed", 2**64, "seed="),
    ("seed", 0.5, "seed must be an integer"),
]


@pytest.mark.parametrize(("name", "value", "says"), WRONG)
def test_what_cannot_be_honoured_is_refused_by_name(name: str, value: Any, says: str) -> None:
    with pytest.raises(ConfigError) as raised:
        EngineConfig(**{name: value})
    assert says in str(raised.value)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"device": "cpu", "kernels": "triton"}, "kernels='triton' computes on a GPU: use device='cuda'"),
        ({"device": "cuda", "kernels": "cpu"}, "kernels='cpu' does not compute on a GPU: use one of auto, triton"),
        ({"device": "cuda", "kernels": "reference"}, "kernels='reference' does not compute on a GPU"),
        ({"device": "cuda", "quantization": "int8"}, "quantization='int8' is served on a CPU only: leave it out"),
        ({"device": "cuda", "linear_kind": "panels"}, "linear_kind='panels' is served on a CPU only"),
    ],
)
def test_what_a_device_does_not_serve(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as raised:
        EngineConfig(**fields)
    assert says in str(raised.value)
    EngineConfig(**{**fields, "device": "auto"})  # whatever device that comes to
    EngineConfig(device="cuda", kernels="triton", linear_kind="plain")


def test_unknown_fields() -> None:
    with pytest.raises(ConfigError, match="no field 'block_sise'; did you mean 'block_size'"):
        EngineConfig(block_sise=8)  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match="no field 'zzz'; known: model, revision"):
        EngineConfig(zzz=8)  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match="no field 'blocks'"):
        dataclasses.replace(EngineConfig(), blocks=3)


def test_presets_are_plain_configurations() -> None:
    first = EngineConfig.preset("v1-naive", num_blocks=7)
    assert first == EngineConfig(policy="fcfs", victims="none", prefix_caching=False, num_blocks=7)
    assert EngineConfig.preset("v4-prefix", policy="fcfs") == EngineConfig()
    shared = {item.name for item in dataclasses.fields(SchedulerConfig)}
    for name, values in PRESETS.items():
        assert set(values) <= shared  # so the simulator can run them, too
        assert EngineConfig.preset(name) == EngineConfig(**values)
    with pytest.raises(ConfigError, match="preset='v5' is unknown: use one of v1-naive, v2-lru"):
        EngineConfig.preset("v5")
    with pytest.raises(ConfigError, match="did you mean 'num_blocks'"):
        EngineConfig.preset("v2-lru", num_block=7)


def test_it_is_frozen_and_can_be_copied() -> None:
    config = EngineConfig(model=Path("some/where"), num_blocks=7)  # type: ignore[arg-type]
    assert config.model == str(Path("some/where"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.num_blocks = 8  # type: ignore[misc]
    for other in (copy.copy(config), copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert other == config
    assert dataclasses.replace(config, num_blocks=8).num_blocks == 8


def test_the_schedulers_part_is_plain_data() -> None:
    facts = ModelFacts(num_blocks=99, max_model_len=50, vocab_size=7, groups=(LayerGroup(2), LayerGroup(2, window=8)))
    engine = EngineConfig(
        block_size=8, max_num_seqs=3, policy="priority", batching="static", eviction="arc", depth=1, num_blocks=5
    )
    config = SchedulerConfig.of(engine, facts)
    assert (config.num_blocks, config.max_model_len, config.groups) == (99, 50, facts.groups)
    for name in {item.name for item in dataclasses.fields(SchedulerConfig)} & {
        item.name for item in dataclasses.fields(EngineConfig)
    } - {"num_blocks", "max_model_len", "link_bandwidth", "compute_speed"}:
        assert getattr(config, name) == getattr(engine, name)
    assert json.loads(json.dumps(config.as_dict()))["groups"][1] == {"num_layers": 2, "window": 8}


def test_the_depth_is_the_devices_unless_it_is_set() -> None:
    facts = ModelFacts(num_blocks=9, max_model_len=50, vocab_size=7)
    assert SchedulerConfig.of(EngineConfig(), facts).depth == 0
    facts = dataclasses.replace(facts, depth=1)
    assert SchedulerConfig.of(EngineConfig(), facts).depth == 1
    assert SchedulerConfig.of(EngineConfig(depth=0), facts).depth == 0


def test_host_cache_wants_models_that_keep_the_whole_context() -> None:
    config = EngineConfig(swap_space=1.0, host_cache=True)
    facts = ModelFacts(num_blocks=9, max_model_len=50, vocab_size=7, page_bytes=2**20)
    assert SchedulerConfig.of(config, facts).host_cache
    facts = dataclasses.replace(facts, groups=(LayerGroup(1), LayerGroup(1, window=8)))
    with pytest.raises(ConfigError, match="host_cache=True is not for models with sliding windows"):
        SchedulerConfig.of(config, facts)


def test_what_the_number_of_drafts_follows_from() -> None:
    facts = ModelFacts(num_blocks=9, max_model_len=50, vocab_size=7)
    engine = EngineConfig(speculative="ngram", speculative_tokens=3, ngram_min=1, ngram_max=2)
    config = SchedulerConfig.of(engine, facts)
    assert (config.speculative, config.speculative_tokens, config.ngram_min, config.ngram_max) == ("ngram", 3, 1, 2)
    assert config.step_costs == STEP_COSTS  # nobody measured them
    measured = dataclasses.replace(facts, step_costs=(1.0, 1.25, 1.5))
    assert SchedulerConfig.of(engine, measured).step_costs == (1.0, 1.25, 1.5)
    priced = dataclasses.replace(engine, row_cost=0.0)
    assert SchedulerConfig.of(priced, measured).step_costs == (1.0, 1.0)


def test_the_names_of_eviction_policies_are_those_there_are() -> None:
    assert set(EVICTIONS) == set(memory.eviction.EVICTIONS)


def test_what_the_choice_of_preemption_reads() -> None:
    facts = ModelFacts(
        num_blocks=9,
        max_model_len=50,
        vocab_size=7,
        page_bytes=3 * 2**20,
        flops_per_token=5.0,
        attention_flops=2.0,
        link_bandwidth=7e9,
    )
    config = SchedulerConfig.of(EngineConfig(swap_space=0.5, preemption="swap"), facts)
    assert (config.num_host_blocks, config.preemption, config.page_bytes) == (170, "swap", 3 * 2**20)
    assert (config.flops_per_token, config.attention_flops) == (5.0, 2.0)
    assert config.link_bandwidth == 7e9  # as measured
    assert config.compute_speed == COMPUTE_SPEED  # nobody measured it
    config = SchedulerConfig.of(EngineConfig(link_bandwidth=1e9, compute_speed=3e9), facts)
    assert (config.link_bandwidth, config.compute_speed) == (1e9, 3e9)  # as set
    assert config.num_host_blocks == 0
    with pytest.raises(ConfigError, match=r"swap_space=0\.001 GiB is less than one block of 3145728 bytes"):
        SchedulerConfig.of(EngineConfig(swap_space=0.001), facts)
