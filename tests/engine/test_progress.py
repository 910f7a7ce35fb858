"""The display of a batch's progress, on a terminal and without one."""

from __future__ import annotations

import io
import sys

import pytest

from octavo.engine.progress import Bar


class Screen(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_lines_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", io.StringIO())
    clock = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    bar = Bar()
    for second in range(25):
        clock[0] = 100.0 + second
        bar.update(1, 3, 10 * second)
    clock[0] = 125.0
    bar.update(3, 3, 250)
    lines = sys.stderr.getvalue().splitlines()  # type: ignore[attr-defined]
    assert lines == [
        "1/3 requests, 100 tokens, 10 tokens/s",
        "1/3 requests, 200 tokens, 10 tokens/s",
        "3/3 requests, 250 tokens, 10 tokens/s",
    ]


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stderr", Screen())
    bar = Bar()
    bar.update(0, 2, 5)
    bar.update(2, 2, 20)
    shown = sys.stderr.getvalue()  # type: ignore[attr-defined]
    assert "generating" in shown
    assert "2/2" in shown
    assert "tokens/s" in shown
