"""``octavo bench``."""

from __future__ import annotations

import json

import pytest

from octavo.cli import main

SMALL = "--rounds 2 -c 2 --prompt-tokens 8 --output-tokens 4"
QUICK = [*SMALL.split(), "--num-blocks", "64", "--max-num-seqs", "4"]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["bench", *arguments])
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, *QUICK, "-c", "3", "--kernels", "reference")
    assert code == 0
    for word in ("one stream", "3 requests at once", "of the limit", "GB/s", "GFLOP/s", "MiB", "8 tokens in, 4 out"):
        assert word in out
    assert "measuring" in err
    assert "\x1b" not in out + err


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, *QUICK, "--kernels", "reference", "--dtype", "float32", "--json", "-q")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert report["dtype"] == "float32"
    assert report["load"] == {"concurrency": 2, "prompt_tokens": 8, "output_tokens": 4, "rounds": 2}
    assert [stream["concurrency"] for stream in report["streams"]] == [1, 2]
    for stream in report["streams"]:
        assert all(len(stream[name]) == 2 for name in ("prefill", "decode", "output", "first_token"))
        assert min(stream["prefill"] + stream["decode"] + stream["output"] + stream["first_token"]) > 0
        assert {stream["prefill_bound"], stream["decode_bound"]} <= {"memory", "products"}
    assert report["memory"]["peak"] > report["memory"]["weights"] > 0
    assert report["start_seconds"] > 0


def test_one_request_alone(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, *QUICK, "-c", "1", "--kernels", "reference", "-q")
    assert code == 0
    assert "one stream" in out
    assert "requests at once" not in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["-c", "5"], "concurrency=5 exceeds max_num_seqs=4"),
        (["-c", "0"], "concurrency=0"),
        (["--output-tokens", "1"], "output_tokens=1"),
        (["--prompt-tokens", "2000"], "context served is"),
        (["-c", "4", "--prompt-tokens", "400"], "the pool has 64"),
        (["--rounds", "0"], "rounds=0 must be at least 1"),
        (["--model", "/no/such/model"], "there is no folder"),
    ],
)
def test_bad_input(capsys: pytest.CaptureFixture[str], arguments: list[str], says: str) -> None:
    code, out, err = run(capsys, *QUICK, "--kernels", "reference", "-q", *arguments)
    assert (code, out) == (2, "")
    assert says in err
    assert len(err.splitlines()) == 1
