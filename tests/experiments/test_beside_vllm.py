"""The experiments: their oracle, Octavo's half on every small stream, and, where a vLLM is named, both halves."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from beside_vllm import report, vllm_python
from beside_vllm.mooncake import mooncake_stream
from beside_vllm.octavo_side import OctavoSide
from beside_vllm.slots import KvSlots, Work
from beside_vllm.stream import Arrival, Stream, ask, block_names, digests, text
from beside_vllm.trail import Trail

NAMES = ("exp001_lru", "exp002_priority", "exp003_prefix")
VLLM_PYTHON = os.environ.get("OCTAVO_VLLM_PYTHON")
Load = Callable[[str], ModuleType]


def stream_of(experiment: Load, name: str, stream: str) -> Stream:
    return next(each for each in experiment(name).streams() if each.name == stream)


def test_the_oracle_sees_what_was_never_computed() -> None:
    slots = KvSlots(3, 2)
    chain = digests(None, (1, 2, 3, 4))
    assert slots.compute([Work("A", chain, 0, 2, [0]), Work("B", chain, 2, 1, [0, 1])]) == []  # within one step
    assert slots.content(0) == chain[1]
    (wrong,) = slots.compute([Work("C", chain, 2, 1, [2, 1])])
    assert wrong.startswith("C reads positions 0")
    (wrong,) = slots.compute([Work("D", digests("salt", (1, 2, 3)), 2, 1, [0, 1])])
    assert wrong.startswith("D reads positions 0")
    slots.copy(0, 2)
    assert slots.compute([Work("E", chain, 2, 2, [2, 1])]) == []


def test_contents_are_named_after_the_first_that_has_them() -> None:
    stream = Stream("s", "", 8, (ask("A", 0, text("H", 8)), ask("B", 0, text("H", 4) + text("B", 4), samples=2)))
    names = block_names(stream)
    assert [names[digest] for digest in digests(None, text("H", 8))[3::4]] == ["A[0]", "A[1]"]
    assert names[digests(None, text("H", 4) + text("B", 4))[-1]] == "B/0[1]"
    assert digests("x", text("H", 8))[-1] not in names


def test_streams_and_trails_survive_json() -> None:
    stream = Stream("s", "", 8, (ask("A", 0, text("A", 5), 3, samples=2, salt="x", priority=1, withdrawn=9),))
    assert Stream.of(json.loads(json.dumps(stream.as_dict()))) == stream
    trail = OctavoSide(stream).run()
    assert Trail.of(json.loads(json.dumps(trail.as_dict()))) == trail


@pytest.mark.parametrize("name", NAMES)
def test_octavo_runs_every_stream_to_its_end_and_reads_nothing_stale(experiment: Load, name: str) -> None:
    for stream in experiment(name).streams():
        trail = OctavoSide(stream).run()
        assert not trail.stale, stream.name
        rows = {row for arrival in stream.arrivals if arrival.withdrawn is None for row in arrival.rows()}
        assert set(trail.finished) == rows, stream.name
        assert all(step.used <= stream.num_blocks for step in trail.steps)
        budget = stream.max_num_batched_tokens
        assert all(sum(count for _, _, count in step.chunks) <= budget for step in trail.steps)
        work = {
            row: len(arrival.prompt) + len(arrival.outputs[0]) - 1
            for arrival in stream.arrivals
            for row in arrival.rows()
        }
        done = dict.fromkeys(work, 0)
        for step in trail.steps:
            for row, first, count in step.chunks:
                done[row] = max(done[row], first + count)
        assert all(done[row] == work[row] for row in rows), stream.name


def test_the_oldest_content_leaves_first_and_a_hit_renews(experiment: Load) -> None:
    trail = OctavoSide(stream_of(experiment, "exp001_lru", "a hit renews")).run()
    assert trail.evicted == ["B[2]", "B[1]", "B[0]"]
    assert trail.hits["A2"] == trail.hits["A3"] == 12


def test_the_urgent_take_what_they_need_and_no_more(experiment: Load) -> None:
    trail = OctavoSide(stream_of(experiment, "exp002_priority", "urgent, and memory is full")).run()
    assert trail.preempted == ["B"]
    assert trail.first_token["U"] == 4
    trail = OctavoSide(stream_of(experiment, "exp002_priority", "urgent, but taking would not help")).run()
    assert trail.preempted == ["B"]  # by A, who grows; not for U's sake
    assert trail.first_token["U"] > trail.finished["A"]


def test_a_shared_prefix_is_computed_once(experiment: Load) -> None:
    trail = OctavoSide(stream_of(experiment, "exp003_prefix", "in one batch")).run()
    assert trail.hits == {"A": 0, "B": 16, "C": 16}
    trail = OctavoSide(stream_of(experiment, "exp003_prefix", "salts")).run()
    assert trail.hits == {"A": 0, "B": 0, "C": 0, "D": 12}
    trail = OctavoSide(stream_of(experiment, "exp003_prefix", "four samples")).run()
    assert trail.hits["A/3"] == 18  # the half-filled block, too


def test_a_mooncake_trace_becomes_a_stream(tmp_path: Path) -> None:
    rows = [
        {"timestamp": 0, "input_length": 1100, "output_length": 64, "hash_ids": [7, 8, 9]},
        {"timestamp": 900, "input_length": 1024, "output_length": 5, "hash_ids": [7, 8]},
    ]
    trace = tmp_path / "trace.jsonl"
    trace.write_text("\n".join(json.dumps(row) for row in rows))
    stream = mooncake_stream(trace, story="", requests=5, num_blocks=50)
    first, second = stream.arrivals
    assert (first.step, second.step) == (0, 2)
    assert [len(first.prompt), len(second.prompt)] == [2 * 16 + 2, 16 + 16]
    assert [len(first.outputs[0]), len(second.outputs[0])] == [2, 1]
    assert first.prompt[:16] == second.prompt[:16]
    assert first.prompt[16:] != second.prompt[16:]  # the second's last id covers a partial block of the trace
    assert OctavoSide(stream).run().hits == {"m0": 0, "m1": 16}


def test_a_report_marks_what_differs() -> None:
    stream = Stream("s", "why", 8, (ask("A", 0, text("A", 5), 3),))
    ours, theirs = OctavoSide(stream).run(), OctavoSide(stream).run()
    same = report.compare(stream, ours, theirs)
    assert same["same"]
    assert not same["steps"]
    theirs.steps[1].evicted.append("A[0]*")
    differs = report.compare(stream, ours, theirs)
    assert differs["differs in"] == ["copies evicted", "evicted"]
    assert [step["step"] for step in differs["steps"]] == [1]
    table = report.as_markdown("e", {"versions": {"octavo": "1"}, "streams": [same, differs]})
    assert "| copies evicted | 0 | 1 | differs |" in table
    assert table.count("differs |") == 2


@pytest.mark.skipif(VLLM_PYTHON is None, reason="OCTAVO_VLLM_PYTHON names no Python with vLLM")
def test_both_engines_do_what_the_committed_results_say(experiment: Load) -> None:
    streams: list[Stream] = []
    committed = []
    for name in NAMES:
        of_it = experiment(name).streams()
        streams += of_it
        results = json.loads((report_folder(experiment, name) / "results.json").read_text())
        committed += results["streams"][: len(of_it)]
    assert [stream["name"] for stream in committed] == [stream.name for stream in streams]
    fresh = report.run(streams, Path(str(VLLM_PYTHON)))
    assert fresh["versions"]["vllm"] == vllm_python.VLLM_VERSION
    for old, new in zip(committed, json.loads(json.dumps(fresh["streams"])), strict=True):
        assert new == old, old["name"]


def report_folder(experiment: Load, name: str) -> Path:
    return Path(str(experiment(name).__file__)).parent


def test_arrivals_name_each_sample() -> None:
    assert Arrival("A", 0, (1,), ((2,),)).rows() == ["A"]
    assert Arrival("A", 0, (1,), ((2,), (3,))).rows() == ["A/0", "A/1"]
