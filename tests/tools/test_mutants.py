"""The planted bugs fit the source as it is now; one of them, and none of them, through the whole machinery."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def mutants() -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("mutants", ROOT / "tools" / "mutants.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_every_patch_applies_and_is_still_python(mutants: ModuleType) -> None:
    assert len({mutant.name for mutant in mutants.MUTANTS}) == len(mutants.MUTANTS) >= 15
    for mutant in mutants.MUTANTS:
        source = (ROOT / "src" / "octavo" / mutant.file).read_text()
        changed = mutant.applied(source)
        assert changed != source, mutant.name
        compile(changed, mutant.file, "exec")


def test_a_patch_that_does_not_apply_is_an_error(mutants: ModuleType) -> None:
    mutant = mutants.Mutant("m", "f.py", "a", "b", times=2)
    assert mutant.applied("a, a") == "b, b"
    with pytest.raises(mutants.PatchError, match="applies 1 times, not 2"):
        mutant.applied("a")


def test_the_list_names_them_all(mutants: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert mutants.main(["--list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(mutants.MUTANTS)
    with pytest.raises(SystemExit):
        mutants.main(["no such mutant"])


@pytest.mark.long
def test_the_suite_passes_unchanged_and_catches_a_skipped_copy(
    mutants: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mutants.main(["skip a copy-on-write", "--jobs", "1"]) == 0
    said = capsys.readouterr().out
    assert "(unchanged)" in said
    assert "1 of 1 caught" in said
