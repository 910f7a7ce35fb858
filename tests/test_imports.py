"""What importing costs, and who may know whom."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "numba", "triton", "transformers", "llvmlite")


def heavy_after(code: str) -> list[str]:
    """Which heavy modules a fresh interpreter holds after running some code."""
    script = f"import sys\n{code}\nprint([name for name in {HEAVY!r} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return list(eval(found.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "code",
    [
        "import octavo",
        "import octavo.engine",
        "import octavo.simulator",
        "import octavo.simulator.simulation, octavo.simulator.cache_lab, octavo.simulator.trace_reader",
        "import octavo.recorder",
        "import octavo.scheduler, octavo.memory",
        "import octavo.cli",
        "from octavo import LLM, LLMEngine, EngineConfig, SamplingParams, RequestOutput",
        "from octavo.cli import main\ntry:\n    main(['--help'])\nexcept SystemExit: pass",
        "from octavo.cli import main\ntry:\n    main(['generate', '--help'])\nexcept SystemExit: pass",
        "from octavo.cli import main\ntry:\n    main(['simulate', '--help'])\nexcept SystemExit: pass",
        "from octavo.cli import main\ntry:\n    main(['bench', '--help'])\nexcept SystemExit: pass",
    ],
)
def test_no_heavy_module_is_imported(code: str) -> None:
    assert heavy_after(code) == []


def test_the_check_would_see_a_heavy_module() -> None:
    assert heavy_after("import numba") == ["numba", "llvmlite"]


def test_public_names_are_there() -> None:
    import octavo

    for name in octavo.__all__:
        assert getattr(octavo, name) is not None
        assert name in dir(octavo)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        octavo.nothing  # noqa: B018


@pytest.mark.alone
@pytest.mark.parametrize(("code", "limit"), [("import octavo", 0.15), ("import octavo.cli", 0.5)])
def test_importing_is_quick(code: str, limit: float) -> None:
    script = f"import time; start = time.perf_counter(); {code}; print(time.perf_counter() - start)"

    def seconds() -> float:
        return float(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout)

    assert min(seconds() for _ in range(5)) < limit


def test_import_rules_hold() -> None:
    """import-linter's contracts, in pyproject.toml; `make lint` runs them too."""
    found = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert found.returncode == 0, found.stdout + found.stderr
    kept = re.search(r"Contracts: (\d+) kept, 0 broken", found.stdout)
    assert kept is not None
    assert int(kept.group(1)) >= 4


def test_no_module_has_grown_a_junk_drawer() -> None:
    names = {path.stem for path in (ROOT / "src" / "octavo").rglob("*.py")}
    assert not names & {"utils", "util", "helpers", "misc", "common"}
