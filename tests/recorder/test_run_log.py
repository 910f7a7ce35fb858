"""What is written can be read, and is what was decided."""

from pathlib import Path

import pytest
from oracle_case import Case, random_case

from octavo.errors import ConfigError
from octavo.plan import SamplingSpec, SlotInit, StepPlan
from octavo.recorder import RunLog, read_log
from octavo.recorder.run_log import scheduler_config
from octavo.simulator.oracle import OracleExecutor


@pytest.mark.parametrize("seed", [1, 5, 11, 38])
def test_plans_come_back_as_they_were(tmp_path: Path, seed: int) -> None:
    case: Case = random_case(seed)
    with RunLog(tmp_path / "run.jsonl") as log:
        log.begin(case.config)
        for plan in case.plans:
            log.write(plan)
    header, plans = read_log(tmp_path / "run.jsonl")
    assert scheduler_config(header) == case.config
    assert list(plans) == case.plans


def test_a_log_replays_on_the_oracle(tmp_path: Path) -> None:
    case = random_case(7)
    with RunLog(tmp_path / "run.jsonl") as log:
        log.begin(case.config)
        for plan in case.plans:
            log.write(plan)
    header, plans = read_log(tmp_path / "run.jsonl")
    config = scheduler_config(header)
    oracle = OracleExecutor(
        config.num_blocks,
        config.block_size,
        num_host_blocks=config.num_host_blocks,
        groups=config.groups,
        vocab_size=case.vocab_size,
    )
    for plan in plans:
        oracle.collect(oracle.submit(plan))  # every read is checked


def test_every_sampling_field_is_kept(tmp_path: Path) -> None:
    spec = SamplingSpec(
        temperature=0.3,
        top_k=5,
        logit_bias=((3, -1.5),),
        allowed_token_ids=(1, 2),
        bad_words=((4, 5), (6,)),
        stop_ids=(0,),
        logprobs=2,
    )
    plan = StepPlan(0, (), init=(SlotInit(0, 1, "r", 0, 2**64 - 1, 2, (7, 8), spec, "salt"),))
    config = random_case(1).config
    with RunLog(tmp_path / "run.jsonl") as log:
        log.begin(config)
        log.write(plan)
    assert list(read_log(tmp_path / "run.jsonl")[1]) == [plan]


@pytest.mark.parametrize("text", ["", "[]\n", "{}\n", '{"version":99,"config":{}}\n', "nonsense\n"])
def test_what_is_no_log_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.jsonl").write_text(text)
    with pytest.raises(ConfigError, match="line 1"):
        read_log(tmp_path / "run.jsonl")


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "run.jsonl").write_text('{"version":1,"config":{}}\n{"step":1}\n')
    with pytest.raises(ConfigError, match="line 2"):
        list(read_log(tmp_path / "run.jsonl")[1])
