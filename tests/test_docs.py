"""The documentation against the code."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

import octavo.errors
from octavo.config import EngineConfig
from octavo.request import CompletionOutput, RequestMetrics, RequestOutput, SamplingParams

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


@pytest.mark.parametrize(("heading", "kind"), [("EngineConfig", EngineConfig), ("SamplingParams", SamplingParams)])
def test_every_field_has_a_row(heading: str, kind: type) -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    section = page.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == [item.name for item in fields(kind)]


def test_every_result_field_is_named() -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    for kind in (RequestOutput, CompletionOutput, RequestMetrics):
        for item in fields(kind):
            assert f"`{item.name}`" in page


def test_every_exception_is_explained() -> None:
    page = (ROOT / "docs" / "errors-and-fixes.md").read_text(encoding="utf-8")
    names = [name for name, kind in vars(octavo.errors).items() if isinstance(kind, type)]
    assert len(names) > 15
    for name in set(names) - {"ModelError"}:  # the root of those about models
        assert f"`{name}`" in page or f"errors.{name}`" in page, name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_the_readme_opens_with_the_two_commands() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    commands = [line.split("#")[0].strip() for line in lines if line.startswith(("make", ".venv"))]
    assert commands[:2] == ["make demo", "make test"]
    assert [command.split()[0] for command in commands[2:5]] == [
        ".venv/bin/octavo", ".venv/bin/octavo", ".venv/bin/python",
    ]  # fmt: skip


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_examples_run(example: Path) -> None:
    done = subprocess.run([sys.executable, example], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout) > 100


def test_the_cache_of_the_api_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    section = page.split("\n## PagedKVCache\n")[1]
    exec(section.split("```python\n")[1].split("```")[0], {})
    assert capsys.readouterr().out.startswith("30 [")


def test_the_readmes_line_of_python_runs() -> None:
    [code] = re.findall(r"^\.venv/bin/python -c '(.*)'$", (ROOT / "README.md").read_text(encoding="utf-8"), re.M)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout) > 50
