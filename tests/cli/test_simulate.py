"""``octavo simulate`` as a user meets it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from octavo.cli import main
from octavo.recorder import read_log

TRACES = Path(__file__).parents[2] / "examples" / "traces"
CHATS = str(TRACES / "conversations.jsonl")
CODE = str(TRACES / "completions.csv")
Octavo = Callable[..., tuple[int, str, str]]


@pytest.fixture
def octavo(capsys: pytest.CaptureFixture[str]) -> Octavo:
    """Run a command in this process: (exit code, stdout, stderr)."""

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


@pytest.mark.parametrize("trace", [CHATS, CODE])
def test_it_prints_what_came_of_it(octavo: Octavo, trace: str) -> None:
    code, out, err = octavo("simulate", trace, "--limit", "40")
    assert code == 0, err
    for row in (
        "40 finished",
        "throughput",
        "time to first token",
        "p99",
        "prefix cache",
        "utilisation",
        "preemptions",
    ):
        assert row in out
    assert "Not measured" in out  # where the numbers come from
    assert "\x1b" not in out + err


def test_json_log_and_check(octavo: Octavo, tmp_path: Path) -> None:
    log = tmp_path / "run.jsonl"
    base = ["simulate", CHATS, "--limit", "12", "--json", "-q", "--cost", "rtx4090-8b", "--memory", "0.7"]
    code, out, err = octavo(*base, "--log", str(log), "--eviction", "lfu")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert report["num_finished"] == 12
    assert report["num_blocks"] == int(0.7 * 2**30) // (131_072 * 16)
    assert report["num_cached_tokens"] > 10_000
    assert report["ttft"]["p50"] <= report["ttft"]["p99"]
    header, plans = read_log(log)
    assert header.config["eviction"] == "lfu"
    assert sum(plan.num_tokens for plan in plans) == report["num_computed_tokens"]

    checked = json.loads(octavo(*base, "--check", "--eviction", "lfu")[1])
    for unlike in ("checked", "wall_seconds", "simulated_requests_per_wall_second"):
        assert checked.pop(unlike) != report.pop(unlike)
    assert checked == report


def test_times_can_be_changed(octavo: Octavo) -> None:
    def run(*arguments: str) -> dict[str, float]:
        return dict(json.loads(octavo("simulate", CHATS, "--json", "-q", "--limit", "30", *arguments)[1]))

    assert run("--rate", "0.05")["seconds"] == pytest.approx(29 / 0.05, rel=0.05)
    assert run("--time-scale", "0")["resident"] > 10
    assert run("--cost-number", "step=1", "--cost-number", "context_token=0")["tpot"]["p50"] > 1
    static, continuous = (run("--time-scale", "0", "--batching", name) for name in ("static", "continuous"))
    assert static["seconds"] >= continuous["seconds"]


def test_contiguous_memory_beside_it(octavo: Octavo) -> None:
    arguments = ["simulate", CODE, "--compare-contiguous", "--time-scale", "0", "--max-model-len", "16384"]
    arguments += ["--memory", "6"]
    code, out, _ = octavo(*arguments)
    assert code == 0
    assert re.search(r"reserve-max +[\d.]+ +0 +", out)
    report = json.loads(octavo(*arguments, "--json", "-q")[1])
    assert set(report["contiguous"]) == {"reserve-max", "power-of-two", "oracle"}
    assert all(each["utilisation"] < report["utilisation"] for each in report["contiguous"].values())
    assert report["contiguous"]["reserve-max"]["peak_resident"] == 3 < report["peak_resident"]


def test_the_cache_alone(octavo: Octavo) -> None:
    code, out, _ = octavo("simulate", CHATS, "--cache-only")
    assert code == 0
    assert re.search(r"lru +endless +\d\d\.\d\d%", out)
    arguments = ["--cache-only", "--capacity", "20,1_00", "--eviction", "lru, arc,belady", "--json", "-q"]
    results = json.loads(octavo("simulate", CHATS, *arguments)[1])["results"]
    assert [(row["eviction"], row["capacity"]) for row in results] == [
        (policy, capacity) for policy in ("lru", "arc", "belady") for capacity in (20, 100)
    ]
    assert all(row["hit_rate"] <= results[-1]["hit_rate"] for row in results)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/no/such/file"], "octavo: /no/such/file cannot be read: No such file"),
        ([__file__], r"octavo: .*test_simulate.py, line 1: neither an object nor a header of columns"),
        ([CHATS, "--piece", "256"], "conversations.jsonl, line 1: .* hash_ids for a prompt"),
        ([CHATS, "--cost", "abacus"], "cost='abacus' is unknown"),
        ([CHATS, "--cost-number", "step"], "must be NAME=SECONDS"),
        ([CHATS, "--cost-number", "stop=1"], "did you mean 'step'"),
        ([CHATS, "--cost-number", "step=-1"], "step=-1.0 must be"),
        ([CHATS, "--memory", "1", "--num-blocks", "5"], "leave one out"),
        ([CHATS, "--memory", "-1"], "--memory -1.0 must be a positive"),
        ([CHATS, "--memory", "1e-6"], "hold no block of 16 tokens"),
        ([CHATS, "--rate", "1", "--time-scale", "1"], "leave one out"),
        ([CHATS, "--rate", "0"], "rate=0.0 must be a positive"),
        ([CHATS, "--time-scale", "-2"], "time_scale=-2.0"),
        ([CHATS, "--limit", "0"], "limit=0"),
        ([CHATS, "--block-size", "24"], "block_size=24 does not divide the 512 tokens"),
        ([CHATS, "--eviction", "belady"], "eviction='belady' is unknown"),
        ([CHATS, "--policy", "random"], "policy='random' is unknown"),
        ([CHATS, "--log", "/no/such/folder/log"], "--log /no/such/folder/log cannot be written"),
        ([CHATS, "--capacity", "5"], "--capacity is read with --cache-only"),
        ([CHATS, "--cache-only", "--capacity", "many"], "--capacity 'many' must be numbers"),
        ([CHATS, "--cache-only", "--capacity", "0"], "capacity=0"),
        ([CHATS, "--cache-only", "--eviction", "oldest"], "eviction='oldest' is unknown: use one of lru"),
        ([CHATS, "--cache-only", "--check", "--depth", "1"], "leave out --check, --depth"),
        ([CODE, "--cache-only"], "completions.csv has no hash_ids"),
    ],
)
def test_mistakes_are_one_clear_line(octavo: Octavo, arguments: list[str], message: str) -> None:
    code, out, err = octavo("simulate", *arguments, "-q")
    assert (code, out) == (2, "")
    assert re.search(message, err), err
    assert "Traceback" not in err
