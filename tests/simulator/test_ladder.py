"""The ladder: what each rung is there to show, on a small load."""

from __future__ import annotations

from pathlib import Path

import pytest

from octavo.errors import ConfigError
from octavo.presets import PRESETS
from octavo.simulator.cost import machine
from octavo.simulator.ladder import MOST_MOMENTS, ORDINARY, URGENT, Load, Rung, climb, climb_for_real
from octavo.simulator.ladder_page import write_page

LOAD = Load(requests=80, rate=4.0, opening=256, question=(32, 128), answer=(64, 256))
BLOCKS = 300


@pytest.fixture(scope="module")
def rungs() -> dict[str, Rung]:
    return {rung.preset: rung for rung in climb(LOAD, machine("rtx4090-8b"), num_blocks=BLOCKS)}


def test_the_rungs_are_the_presets(rungs: dict[str, Rung]) -> None:
    assert list(rungs) == list(PRESETS) == ["v1-naive", "v2-lru", "v3-priority", "v4-prefix"]


def test_v1_fails_in_mid_run(rungs: dict[str, Rung]) -> None:
    first = rungs["v1-naive"]
    assert first.num_failed > 0
    assert first.num_finished + first.num_failed == LOAD.requests
    assert first.num_preemptions == 0


@pytest.mark.parametrize("preset", ["v2-lru", "v3-priority", "v4-prefix"])
def test_the_others_lose_nobody(rungs: dict[str, Rung], preset: str) -> None:
    assert rungs[preset].num_failed == 0
    assert rungs[preset].num_finished == LOAD.requests


def test_v2_preempts_and_v3_serves_the_urgent_first(rungs: dict[str, Rung]) -> None:
    second, third = rungs["v2-lru"], rungs["v3-priority"]
    assert second.num_preemptions > 0
    assert second.ttft_urgent is not None
    assert third.ttft_urgent is not None
    assert third.ttft_ordinary is not None
    assert third.ttft_urgent.p99 < second.ttft_urgent.p99
    assert third.ttft_urgent.p99 < third.ttft_ordinary.p99


def test_v4_finds_openings_in_memory(rungs: dict[str, Rung]) -> None:
    third, fourth = rungs["v3-priority"], rungs["v4-prefix"]
    assert third.hit_rate == third.num_evicted == 0
    assert fourth.hit_rate > 0.5
    assert fourth.num_evicted > 0
    assert fourth.seconds <= third.seconds


def test_memory_is_watched(rungs: dict[str, Rung]) -> None:
    for rung in rungs.values():
        assert 1 < len(rung.timeline) <= MOST_MOMENTS
        assert all(0 <= moment.filled <= moment.held <= 1 for moment in rung.timeline)
        assert [moment.seconds for moment in rung.timeline] == sorted(moment.seconds for moment in rung.timeline)
        assert rung.utilisation > 0.9


def test_the_same_load_climbs_alike(rungs: dict[str, Rung]) -> None:
    again = {rung.preset: rung for rung in climb(LOAD, machine("rtx4090-8b"), num_blocks=BLOCKS)}
    assert again == rungs


def test_the_load_is_what_it_says() -> None:
    trace = LOAD.trace()
    assert len(trace.requests) == LOAD.requests
    assert trace.longest <= LOAD.longest
    assert {request.priority for request in trace.requests} == {URGENT, ORDINARY}
    shared = LOAD.opening // LOAD.piece
    assert len({request.contents[:shared] for request in trace.requests}) == LOAD.assistants
    own = [content for request in trace.requests for content in request.contents[shared:]]
    assert len(own) == len(set(own))
    assert max(own) < trace.num_contents
    assert trace == LOAD.trace() != Load(requests=80, seed=1).trace()


@pytest.mark.parametrize(
    ("field", "value"),
    [("requests", 0), ("rate", 0.0), ("rate", float("nan")), ("assistants", 0), ("piece", 0), ("opening", 100),
     ("opening", -64), ("urgent", 1.5), ("question", (0, 4)), ("answer", (5, 4))],
)  # fmt: skip
def test_a_load_that_cannot_be(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field):
        Load(**{field: value})  # type: ignore[arg-type]


def test_for_real() -> None:
    load = Load(requests=10, rate=200.0, assistants=2, opening=32, question=(8, 24), answer=(8, 40), piece=16)
    rungs = list(climb_for_real(load, num_blocks=24, kernels="reference", dtype="float32"))
    assert [rung.preset for rung in rungs] == list(PRESETS)
    assert rungs[0].num_failed > 0
    for rung in rungs[1:]:
        assert rung.num_finished == load.requests
        assert rung.ttft_ordinary is not None
        assert rung.ttft_ordinary.p50 > 0
    assert rungs[2].hit_rate == 0 < rungs[3].hit_rate


def test_the_page(rungs: dict[str, Rung], tmp_path: Path) -> None:
    path = tmp_path / "ladder.html"
    write_page(path, list(rungs.values()), "a <load>", ["preset"], [[name] for name in rungs])
    text = path.read_text(encoding="utf-8")
    assert text.count("<svg") == 3
    assert "a &lt;load&gt;" in text
    assert "http://" not in text.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    )  # it loads nothing from elsewhere
    with pytest.raises(ConfigError, match="cannot be written"):
        write_page(tmp_path / "none" / "x.html", list(rungs.values()), "", [], [])
