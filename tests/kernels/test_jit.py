"""Where compiled code is kept, and how kernels are run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import llvmlite.binding as llvm
import pytest
import torch
from kernel_case import INTERPRETED, Case

from octavo.kernels.cpu import jit, launch
from octavo.kernels.cpu.compiler import hide_all_but


def in_a_new_process(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("OCTAVO_CACHE_DIR", raising=False)
    assert jit.user_cache_dir() == tmp_path / "xdg" / "octavo"
    monkeypatch.setenv("OCTAVO_CACHE_DIR", str(tmp_path / "own"))
    assert jit.user_cache_dir() == tmp_path / "own"
    monkeypatch.delenv("OCTAVO_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert jit.user_cache_dir() == tmp_path / ".cache" / "octavo"


def test_the_cache_key_follows_sources_and_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    key = jit.cache_key()
    assert len(key) == 16
    jit.cache_key.cache_clear()
    monkeypatch.setattr(jit, "host_features", lambda: frozenset({"another-cpu"}))
    assert jit.cache_key() != key
    jit.cache_key.cache_clear()
    monkeypatch.undo()
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read(path) + (b"#" if path.name == "tiles.py" else b""))
    assert jit.cache_key() != key
    jit.cache_key.cache_clear()


def test_an_unwritable_folder_only_costs_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("OCTAVO_CACHE_DIR", str(tmp_path / "file" / "below"))
    jit.cache_dir.cache_clear()
    try:
        assert jit.cache_dir() is None
    finally:
        jit.cache_dir.cache_clear()


@pytest.mark.skipif(INTERPRETED, reason="nothing is compiled")
def test_a_second_start_compiles_nothing(tmp_path: Path) -> None:
    # one kernel stands for all: compiling every one of them takes its time
    code = """
import sys
from octavo.kernels.cpu import jit, rows
jit.KERNELS[:] = [rows.copy_pages]
jit.warm_up(lambda name, i, total: print(name, i, total))
print("compiler", "numba" in sys.modules)
"""
    first = in_a_new_process(code, OCTAVO_CACHE_DIR=str(tmp_path))
    assert first.split("\n")[:2] == ["compiling copy_pages 0 1", "compiler True"]
    assert in_a_new_process(code, OCTAVO_CACHE_DIR=str(tmp_path)).split("\n")[0] == "compiler False"
    assert [path.name for path in tmp_path.iterdir()] == [f"jit-{jit.cache_key()}"]
    held = tmp_path / f"jit-{jit.cache_key()}" / "copy_pages.o"
    assert list(held.parent.iterdir()) == [held]
    held.write_bytes(held.read_bytes()[:-1])
    assert in_a_new_process(code, OCTAVO_CACHE_DIR=str(tmp_path)) == first


@pytest.mark.skipif(INTERPRETED, reason="nothing is compiled")
def test_warmed_up_is_cached() -> None:
    jit.warm_up()
    assert all(kernel.is_cached for kernel in jit.KERNELS)


CALLS_NOWHERE = """
from llvmlite import ir
from octavo.kernels.cpu.compiler import compile_kernel
from octavo.kernels.cpu.primitives import Primitive

def emit(e, value):
    return e.b.call(ir.Function(e.b.module, ir.FunctionType(value.type, [value.type]), "octavo_nowhere"), [value])

nowhere = Primitive("ii", int, emit)

def calls_it(p):
    nowhere(p)

compile_kernel(calls_it, "octavo_test")
"""


@pytest.mark.skipif(INTERPRETED, reason="nothing is compiled")
def test_code_that_calls_what_is_not_there_is_refused() -> None:
    # in a process of its own: Numba has taken the code in by then, and LLVM would end this one at the next kernel
    done = subprocess.run([sys.executable, "-c", CALLS_NOWHERE], capture_output=True, text=True, timeout=240)
    assert done.returncode == 1
    assert "RuntimeError: the kernel calls_it calls octavo_nowhere" in done.stderr


def test_threads_are_torchs() -> None:
    before = torch.get_num_threads()
    try:
        launch.set_num_threads(3)
        assert torch.get_num_threads() == launch.num_threads() == 3
    finally:
        launch.set_num_threads(before)
    with pytest.raises(ValueError, match="num_threads=0"):
        launch.set_num_threads(0)


@pytest.mark.skipif(INTERPRETED, reason="one thread interprets")
@pytest.mark.usefixtures("two_threads")
def test_without_torchs_threads_pythons_do_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case([(1, 900), (50, 200)], 4, 2, 64)
    expected = case.fused("cpu")[0]
    monkeypatch.setattr(launch, "GOMP_PARALLEL", None)
    assert torch.equal(case.fused("cpu")[0], expected)


@pytest.mark.skipif(INTERPRETED, reason="one thread interprets")
@pytest.mark.usefixtures("two_threads")
def test_host_threads_may_launch_kernels_at_the_same_time() -> None:
    from concurrent.futures import ThreadPoolExecutor

    cases = [Case([(1, 400 + 50 * i), (30, 60)], 4, 2, 64, seed=i) for i in range(4)]
    expected = [case.fused("cpu")[0] for case in cases]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            for out, wanted in zip(pool.map(lambda case: case.fused("cpu")[0], cases), expected, strict=True):
                assert torch.equal(out, wanted)


def test_too_many_argument_words_are_refused() -> None:
    with pytest.raises(ValueError, match="argument words"):
        launch.packer("200q")


def test_kernels_share_no_names_but_their_own() -> None:
    module = llvm.parse_assembly(
        """
        @common = common global i64 0
        @held = linkonce_odr constant i64 7
        declare void @elsewhere()
        define linkonce_odr i64 @tasks(i64 %x) { ret i64 %x }
        define void @octavo_kernel_it(i64 %x) {
            call void @elsewhere()
            %y = call i64 @tasks(i64 %x)
            ret void
        }
        """
    )
    hide_all_but(module, "octavo_kernel_it")
    module.verify()
    kept = [named.name for named in (*module.functions, *module.global_variables) if named.linkage.name == "external"]
    assert kept == ["elsewhere", "octavo_kernel_it"]
