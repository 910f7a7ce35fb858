"""What was measured is remembered, for the circumstances it was measured under."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from octavo.model import choosing
from octavo.model.choices import Choice, LinearChoices
from octavo.model.choosing import KindChooser
from octavo.model.linear import PlainLinear

CHOICE = Choice("panels", (1, 16), {"plain": (2e-6, 3e-6), "panels": (1e-6, 1e-6)})


class Other(PlainLinear):
    kind = "other"


def test_what_was_kept_is_found_again(tmp_path: Path) -> None:
    here = {"machine": "a"}
    LinearChoices(here, tmp_path).keep("32x64", CHOICE)
    choices = LinearChoices(here, tmp_path)
    choices.keep("64x32", CHOICE)
    assert choices.read() == {"32x64": CHOICE, "64x32": CHOICE}
    assert choices.find("32x64", ("plain", "panels"), (1, 16)) == CHOICE
    assert choices.find("32x32", ("plain", "panels"), (1, 16)) is None
    # among other kinds, or other sizes of batch, another might have been chosen
    assert choices.find("32x64", ("plain", "packed", "panels"), (1, 16)) is None
    assert choices.find("32x64", ("plain", "panels"), (1, 16, 256)) is None
    assert LinearChoices({"machine": "b"}, tmp_path).read() == {}
    assert str(CHOICE) == "panels (microseconds at 1/16 rows: plain 2/3; panels 1/1)"


def test_circumstances_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def path(backend: str = "cpu", dtype: torch.dtype = torch.bfloat16, threads: int = 2) -> Path:
        return LinearChoices.here(backend, dtype, threads, tmp_path).path

    paths = {path(), path("reference"), path(dtype=torch.float32), path(threads=1)}
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert len(paths | {path()}) == 5


@pytest.mark.parametrize("text", ["", "{}", '{"choices": {"32x64": {"kind": "plain"}}}', '{"choices": [1]}'])
def test_a_damaged_file_costs_a_measurement_only(tmp_path: Path, text: str) -> None:
    choices = LinearChoices({}, tmp_path)
    choices.path.write_text(text)
    assert choices.read() == {}
    choices.keep("32x64", CHOICE)
    assert choices.read() == {"32x64": CHOICE}


def test_a_folder_that_cannot_be_written_costs_the_memory_only(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    LinearChoices({}, tmp_path / "file").keep("32x64", CHOICE)


def clocks(monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    """Every look at the clock is a second later; of each the process has had ``share`` on all its threads."""
    ticks = itertools.count()
    now = [0.0]

    def wall() -> float:
        now[0] = float(next(ticks))
        return now[0]

    monkeypatch.setattr(choosing.time, "perf_counter", wall)
    monkeypatch.setattr(choosing.time, "process_time", lambda: now[0] * share * torch.get_num_threads())


def test_what_a_busy_machine_disturbed_is_not_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "_seconds", lambda linear, x: 1.0)
    remembered = LinearChoices({}, tmp_path)
    for share, kept in ((0.5, False), (0.95, True)):
        clocks(monkeypatch, share)
        kind, _ = KindChooser("auto", remembered).choose([PlainLinear, Other], torch.ones(32, 64), None)
        assert kind is Other
        assert ("32x64" in remembered.read()) == kept


def test_nothing_is_measured_twice_but_when_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clocks(monkeypatch, 1.0)
    measured: list[str] = []
    faster = "other"

    def seconds(linear: PlainLinear, x: torch.Tensor) -> float:
        measured.append(linear.kind)
        return 1.0 if linear.kind == faster else 2.0

    monkeypatch.setattr(choosing, "_seconds", seconds)
    weight = torch.ones(32, 64)

    def choose(wanted: str = "auto") -> str:
        kind, note = KindChooser(wanted, LinearChoices({}, tmp_path)).choose([PlainLinear, Other], weight, None)
        assert note.startswith(f"linear 32x64: {kind.kind} (microseconds at 1/16/256 rows: plain ")
        return str(kind.kind)

    assert choose() == "other"
    assert len(measured) == 12
    faster = "plain"
    assert choose() == "other"
    assert len(measured) == 12
    assert choose("measure") == "plain"
    assert choose() == "plain"
    assert len(measured) == 24
