"""``octavo ladder``."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import pytest

from octavo.cli import main

SMALL = ["--requests", "60", "--rate", "6", "--num-blocks", "260"]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["ladder", *arguments])
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def test_the_table_and_the_page(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    page = tmp_path / "ladder.html"
    code, out, err = run(capsys, *SMALL, "--html", str(page))
    assert code == 0
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[2:6]] == ["v1-naive", "v2-lru", "v3-priority", "v4-prefix"]
    assert "60 requests at 6 a second" in err
    assert "60 requests at 6 a second" in page.read_text(encoding="utf-8")


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, *SMALL, "--json", "--seed", "3")
    assert code == 0
    assert err == ""
    rungs = [json.loads(line) for line in out.splitlines()]
    assert [rung["preset"] for rung in rungs] == ["v1-naive", "v2-lru", "v3-priority", "v4-prefix"]
    assert all(rung["num_finished"] + rung["num_failed"] == 60 for rung in rungs)


def test_for_real(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--real", "--requests", "6", "--rate", "50", "--num-blocks", "24")
    assert code == 0
    assert "v4-prefix" in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--num-blocks", "10"], "num_blocks=10 hold 160 tokens"),
        (["--requests", "0"], "requests=0"),
        (["--rate", "-1"], "rate=-1"),
        (["--machine", "abacus"], "abacus"),
    ],
)
def test_bad_input(capsys: pytest.CaptureFixture[str], arguments: list[str], says: str) -> None:
    code, out, err = run(capsys, *arguments)
    assert code == 2
    assert out == ""
    assert says in err


def test_without_matplotlib(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    code, out, err = run(capsys, "--html", str(tmp_path / "x.html"))
    assert (code, out) == (2, "")
    assert "pip install 'octavo[plots]'" in err
