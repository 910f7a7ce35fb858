from __future__ import annotations

from pathlib import Path

import pytest
import torch

from octavo.errors import ConfigError
from octavo.model import dtypes
from octavo.model.dtypes import cpu_computes, resolve_dtype

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_a_named_dtype_is_taken_or_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dtype = getattr(torch, name)
    assert resolve_dtype(name, torch.float32, CPU)[0] == dtype
    monkeypatch.setattr(dtypes, "_multiplies", lambda dtype, device: False)
    with pytest.raises(ConfigError, match=name):
        resolve_dtype(name, torch.float32, CPU)


def test_a_named_dtype_the_cpu_is_slow_in_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dtypes, "cpu_computes", lambda dtype: dtype == torch.float32)
    assert "float32 may be faster" in resolve_dtype("bfloat16", torch.float32, CPU)[1][0]
    assert resolve_dtype("float32", torch.bfloat16, CPU)[1] == []


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("native", [True, False])
def test_auto(stored: torch.dtype, native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dtypes, "cpu_computes", lambda dtype: native or dtype == torch.float32)
    dtype, notes = resolve_dtype("auto", stored, CPU)
    if native or stored == torch.float32:
        assert (dtype, notes) == (stored, [])
    else:
        assert dtype == torch.float32
        assert str(stored).removeprefix("torch.") in notes[0]


def test_an_unknown_dtype() -> None:
    with pytest.raises(ConfigError, match="float8"):
        resolve_dtype("float8", torch.float32, CPU)


@pytest.mark.parametrize(
    ("cpuinfo", "bfloat16", "float16"),
    [
        ("processor : 0\nflags\t\t: fpu avx2 avx512f\n", False, False),
        ("flags\t\t: fpu avx512f avx512_bf16\n", True, False),
        ("flags : avx512_bf16 avx512_fp16 amx_bf16\n", True, True),
        ("Features : fp asimd asimdhp bf16\n", True, True),
        ("Features : fp asimd\n", False, False),
        ("model name : unknown\n", False, False),
    ],
)
def test_what_the_cpu_computes_in(tmp_path: Path, cpuinfo: str, bfloat16: bool, float16: bool) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(cpuinfo)
    assert cpu_computes(torch.float32, path)
    assert cpu_computes(torch.bfloat16, path) == bfloat16
    assert cpu_computes(torch.float16, path) == float16


@pytest.mark.parametrize("answer", [True, False])
def test_where_the_system_does_not_say_onednn_is_asked(
    tmp_path: Path, answer: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dtypes, "_onednn_computes", lambda dtype: answer)
    assert cpu_computes(torch.bfloat16, tmp_path / "none") == answer
    assert cpu_computes(torch.float32, tmp_path / "none")


def test_onednn_answers_for_this_machine() -> None:
    assert isinstance(dtypes._onednn_computes(torch.bfloat16), bool)
    assert isinstance(dtypes._onednn_computes(torch.float16), bool)


def test_without_onednn_only_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not dtypes._onednn_computes(torch.bfloat16)


def test_every_dtype_multiplies_here() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert dtypes._multiplies(dtype, CPU)
