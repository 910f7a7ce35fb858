"""The two forms of each primitive, compiled and plain Python, do the same to memory."""

from __future__ import annotations

import ctypes
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numba
import numpy as np
import pytest
import torch
from kernel_case import INTERPRETED
from numba import types

from octavo.kernels import noise

# they add to the table of primitives
from octavo.kernels.cpu import draws, elementwise, grouped_panels, int8_panels, pairs, panels, stream, tiles, words  # noqa: F401
from octavo.kernels.cpu.elementwise import GELU, SILU
from octavo.kernels.cpu.emitter import BF16, F16, F32, INT8
from octavo.kernels.cpu.jit import host_features
from octavo.kernels.cpu.primitives import PRIMITIVES

pytestmark = pytest.mark.skipif(INTERPRETED, reason="there is one form only")

SIZE = 40_000
"""Floats of the memory that a primitive may work on."""


@cache
def compiled() -> Callable[[int], None]:
    """Every primitive in one function: words at its address choose one and hold the arguments."""
    globals_: dict[str, Any] = {}
    lines = ["def run(p):", "    which = load_i64(p)"]
    for needed in ("load_i64", "load_f64", "store_i64", "store_f32", "as_f32"):
        globals_[needed] = PRIMITIVES[f"_{needed}"].typed()
    for number, primitive in enumerate(PRIMITIVES.values()):
        globals_[f"primitive_{number}"] = primitive.typed()
        read = {"i": "load_i64(p + {})", "d": "load_f64(p + {})", "f": "as_f32(load_f64(p + {}))"}
        arguments = ", ".join(read[letter].format(8 * i) for i, letter in enumerate(primitive.signature[1:], start=2))
        call = f"primitive_{number}({arguments})"
        keep = {"v": call, "i": f"store_i64(p + 8, {call})", "f": f"store_f32(p + 8, {call})"}
        keep["d"] = f"store_f32(p + 8, as_f32({call}))"
        lines += [f"    if which == {number}:", f"        {keep[primitive.signature[0]]}"]
    exec("\n".join(lines), globals_)
    function = numba.cfunc(types.void(types.int64), nopython=True, error_model="numpy")(globals_["run"])
    call = ctypes.CFUNCTYPE(None, ctypes.c_int64)(function.address)
    compiled.keep = function  # type: ignore[attr-defined]  # the code lives as long as this
    return call


@dataclass
class At:
    """An address: so many floats into the memory."""

    floats: int


def run_both(name: str, memory: np.ndarray, arguments: list[Any]) -> tuple[Any, np.ndarray, Any, np.ndarray]:
    """What the Python form returns and leaves in memory, then the same of the compiled form."""
    primitive = PRIMITIVES[name]
    outcomes: list[Any] = []
    for is_compiled in (False, True):
        own = memory.copy()
        values = [own.ctypes.data + 4 * a.floats if isinstance(a, At) else a for a in arguments]
        if not is_compiled:
            with np.errstate(all="ignore"):
                result = primitive.python(*values)
        else:
            words = np.zeros(2 + len(values), np.int64)
            words[0] = list(PRIMITIVES).index(name)
            for i, (letter, value) in enumerate(zip(primitive.signature[1:], values, strict=True), start=2):
                if letter == "i":
                    words[i] = value
                else:
                    words[i : i + 1].view(np.float64)[0] = value
            compiled()(words.ctypes.data)
            kind = primitive.signature[0]
            result = {"v": None, "i": int(words[1])}.get(kind, float(words[1:2].view(np.float32)[0]))
        outcomes += [result, own]
    return tuple(outcomes)


def noise_memory(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(SIZE).astype(np.float32)


def cases() -> dict[str, tuple[str, list[Any]]]:
    made: dict[str, tuple[str, list[Any]]] = {}

    def add(name: str, *arguments: Any) -> None:
        made[f"{name}-{len(made)}"] = (f"_{name}", list(arguments))

    add("load_i64", At(3 * 2))
    add("load_i32", At(3))
    add("load_f64", At(3 * 2))
    add("load_f32", At(3))
    add("store_i64", At(4), -(2**40))
    add("store_i32", At(5), -7)
    add("store_f32", At(5), 1.25)
    add("fetch_add", At(4), 5)
    add("as_f32", 1 / 3)
    add("finalize", -123456789)
    add("copy_bytes", At(10), At(12), 1001)
    add("copy_bytes", At(12), At(10), 1001)
    add("wait_for", At(4), -(2**62))
    add("exponential", -3.7)
    for count in (0, 1, 15, 16, 17, 100):
        add("sum_squares", At(3), count)
        add("fill", At(3), 2.5, count)
        add("scale_weighted", At(0), At(200), 0.7, 1.0, count)
        add("scale", At(0), -1.5, count)
        add("multiply_row", At(0), At(200), count)
        add("widen", INT8, At(0), At(300), count)
        add("blend", At(0), 0.3, At(200), 0.9, count)
        add("rotate", At(0), At(500), count)
        add("shift_divide", At(0), 0.5, 0.7, At(300), count)
        add("largest", At(7), count)
        add("largest_if_finite", At(7), count)
        add("first_equal", At(0), count, 123.0)
        for dtype in (F32, BF16, F16):
            add("widen", dtype, At(0), At(300), count)
            add("narrow", dtype, At(0), At(300), count)
            add("add_round", dtype, At(0), At(300), At(600), count)
            for kind in (SILU, GELU):
                add("gate", dtype, kind, At(0), At(300), At(600), count)
        if count:
            for dtype in (F32, BF16, F16):
                add("quantize_row", dtype, At(0), At(300), count)
            add("weigh", At(0), 0.5, 0, count)
            add("weigh", At(0), 0.5, At(300), count)
            add("pick", At(0), count, 0.3, At(300))
            add("spread", At(0), At(300), 5, count)
            add("collect", At(0), 5, At(900), count)
            for softcap in (0.0, 2.0):
                add("softmax", At(0), count, softcap, At(300))
    for count in (64, 65, 200, 640):
        add("group_largest", At(1), count, At(1000))
    add("transpose_words", At(0), 80, At(3000), 72)
    add("transpose_pairs", At(0), 40, At(3000), 68)
    for dtype in (F32, BF16, F16):
        for half in (5, 16, 37):
            add("dtype_sum_squares", dtype, At(0), half)
            add("scale_narrow", dtype, At(0), -1.5, At(300), half)
            for weight in (0, At(700)):
                for to in {F32, dtype}:
                    add("turn_row", dtype, At(0), weight, 0.7, At(500), half, 1.5, to, At(1000))
    for keys in (32, 64):
        add("pack_weights", At(0), keys, At(3000))
    for rows in (1, 80):
        add("rescale", At(0), rows, At(20_000))
    for count in (5, 16, 100):
        add("int8_to_bf16", At(0), At(300), count)
        add("prefetch", At(0), count)
    for dtype in (F32, BF16, F16, INT8):
        for group in (1, 2, 3, 4):
            for keys, dim in ((1, 16), (7, 80), (16, 64)):
                add("dots", dtype, At(0), 4 * 128, group, At(1000), keys, dim, At(8000), 4 * 32, At(1000))
                add("weighted_sum", dtype, At(0), 4 * 128, group, At(1000), keys, dim, At(8000), 4 * 128, At(1000))
    for vectors in (1, 2, 3, 4):
        for alpha in (0, At(30000)):
            add("product", At(0), 50, 1, 16, 37, At(2000), At(9000), 64, vectors, alpha)
            add("product", At(0), 1, 50, 16, 37, At(2000), At(9000), 64, vectors, alpha)
    for groups, size in ((1, 32), (3, 96)):
        add("sum_groups", At(1), groups, size, 8, At(9000))
    for mins in (0, At(2000)):
        for dtype in (F32, F16):
            add("start_sums", mins, dtype, 3, At(0), 4 * 70, 5, 8, At(9000))
    add("xor_words", At(2), 3 * stream.STEP)
    add("words", -3, 2**33 + 9, 12, At(100))
    return made


CASES = cases()
EXACT = {"_narrow", "_add_round", "_copy_bytes", "_words", "_store_i64", "_fetch_add", "_store_i32", "_quantize_row"}
"""Not a bit may differ."""


@pytest.mark.parametrize("case", CASES, ids=str)
def test_both_forms_agree(case: str) -> None:
    name, arguments = CASES[case]
    memory = noise_memory()
    if name in ("_dots", "_weighted_sum", "_widen", "_gate", "_add_round", "_quantize_row") and arguments[0] != F32:
        # arbitrary bits would hold infinities: rows of the dtype are made of small numbers
        own = memory.copy()
        if arguments[0] == F16:
            memory.view(np.float16)[:] = np.random.default_rng(1).standard_normal(2 * SIZE)
        elif arguments[0] == INT8:
            memory.view(np.int8)[:] = np.random.default_rng(1).integers(-127, 128, 4 * SIZE)
        else:
            memory.view(np.uint16)[:] = np.concatenate((own, own[::-1])).view(np.uint32) >> 16
        if name in ("_dots", "_weighted_sum"):
            memory[:1000], memory[8000:] = own[:1000], own[8000:]
    if name == "_first_equal" and arguments[1] > 10:
        memory[arguments[1] - 3] = 123.0
    result, left, compiled_result, compiled_left = run_both(name, memory, arguments)
    if result is not None:
        assert compiled_result == pytest.approx(result, rel=3e-6, nan_ok=True)
    if name == "_pick":
        # what lies behind those picked is unspecified
        left[300 + int(result) : 400] = compiled_left[300 + int(result) : 400] = 0
    if name in EXACT:
        assert (left.view(np.uint32) == compiled_left.view(np.uint32)).all()
        return
    if name == "_gate" and arguments[0] != F32:
        # rounded from sums that differ in their last place: a unit of the dtype apart at most
        a, b = (x.view(np.uint16).astype(np.int64) for x in (left, compiled_left))
        assert np.abs(a - b).max() <= 1
        return
    np.testing.assert_allclose(compiled_left, left, rtol=2e-5, atol=2e-5, equal_nan=True)


@pytest.mark.parametrize("masked", [0, 1])
@pytest.mark.parametrize("softcap", [0.0, 2.0])
@pytest.mark.parametrize("vectors", [1, 3])
def test_both_forms_of_the_tiles_softmax_agree(masked: int, softcap: float, vectors: int) -> None:
    memory = noise_memory()
    memory[20000 : 20000 + 64].view(np.int32)[:] = np.arange(64) + 90
    memory[10000:10064] = tiles.LOWEST
    memory[10000:10016] = 0.5
    arguments = [At(0), 64, 33, vectors, 100, At(20000), 20, masked, softcap, At(10000)]
    _, left, _, compiled_left = run_both("_tile_softmax", memory, arguments)
    np.testing.assert_allclose(compiled_left, left, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("more", [0, 1])
@pytest.mark.parametrize("ahead", [0, 1])
@pytest.mark.parametrize("rows", [1, 5, 16, 17, 32])
def test_both_forms_of_the_panel_product_agree(rows: int, ahead: int, more: int) -> None:
    memory = noise_memory()
    small = np.concatenate((memory[8000:], memory[8000:])).view(np.uint32) >> 16
    memory[8000:].view(np.uint16)[:] = small
    arguments = [At(9000), 4 * 60, rows, At(12000), 3, At(0), more, ahead]
    run_both("_configure", memory, [rows])  # of this thread, for what follows
    _, left, _, compiled_left = run_both("_panel_product", memory, arguments)
    run_both("_configure", memory, [0])
    assert (left[rows * panels.PANEL :] == memory[rows * panels.PANEL :]).all()
    assert not np.array_equal(left, memory)
    np.testing.assert_allclose(compiled_left, left, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("more", [0, 1])
@pytest.mark.parametrize("ahead", [0, 1])
@pytest.mark.parametrize("rows", [1, 5, 16, 17, 32])
def test_both_forms_of_the_product_of_bytes_agree(rows: int, ahead: int, more: int) -> None:
    memory = noise_memory()
    steps = 3
    tiles_ = memory[12000:].view(np.int8)[: steps * int8_panels.BYTE_DEPTH * panels.PANEL]
    sums = tiles_.reshape(steps, 2, -1, 16, int8_panels.QUAD).sum((0, 2, 4), dtype=np.int32)
    memory[7000:7032].view(np.int32)[:] = -128 * sums.ravel()
    memory[: rows * panels.PANEL].view(np.int32)[:] = np.arange(rows * panels.PANEL)
    arguments = [At(9000), 4 * 60, rows, At(12000), steps, At(0), more, At(7000), ahead]
    run_both("_configure", memory, [rows])  # of this thread, for what follows
    _, left, _, compiled_left = run_both("_byte_product", memory, arguments)
    run_both("_configure", memory, [0])
    assert not np.array_equal(left, memory)
    if more and int8_panels.SHIFTED:
        # the call that began these sums would have taken off what this one's inputs have too much
        left[: rows * panels.PANEL].view(np.int32).reshape(rows, panels.PANEL)[:] += 128 * sums.ravel()
    np.testing.assert_array_equal(compiled_left.view(np.int32), left.view(np.int32))


@pytest.mark.parametrize("bias", [0, At(3000)])
@pytest.mark.parametrize("kind", [SILU, GELU, panels.PLAIN])
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_both_forms_of_writing_a_panel_of_bytes_agree(dtype: int, kind: int, bias: Any) -> None:
    memory = noise_memory()
    memory[: 7 * panels.PANEL].view(np.int32)[:] = (9 * memory[: 7 * panels.PANEL]).astype(np.int32)
    arguments = [dtype, kind, At(0), 7, At(1000), At(2000), bias, At(4000), 4 * 40]
    _, left, _, compiled_left = run_both("_write_byte_panel", memory, arguments)
    if dtype == F32:
        np.testing.assert_allclose(compiled_left[4000:4280], left[4000:4280], rtol=2e-5, atol=1e-5)
    else:
        # by value: what is next to nothing is nothing in one form
        a, b = ((x[4000:4280].view(np.uint16).astype(np.uint32) << 16).view(np.float32) for x in (left, compiled_left))
        np.testing.assert_allclose(b, a, rtol=0 if kind == panels.PLAIN else 2**-7, atol=1e-30)
    assert (left[4280:] == memory[4280:]).all()
    assert (compiled_left[4280:] == memory[4280:]).all()


@pytest.mark.parametrize("steps", [3, 20])
@pytest.mark.parametrize("more", [0, 1])
@pytest.mark.parametrize("bias", [0, At(3000)])
@pytest.mark.parametrize("kind", [SILU, GELU, panels.PLAIN])
def test_a_product_beside_which_another_is_written_gives_the_bits_of_both_apart(
    kind: int, bias: Any, more: int, steps: int
) -> None:
    memory = noise_memory()
    memory[8000:].view(np.uint16)[:] = np.concatenate((memory[8000:], memory[8000:])).view(np.uint32) >> 16
    memory[3000:3016].view(np.uint16)[:] = memory[5000:5032].view(np.uint32) >> 16
    product = [At(9000), 4 * 20 * steps, panels.ROWS, At(25_000), steps, At(0), more, 0]
    written = [kind, At(1500), panels.ROWS, bias, At(4000), 4 * 40]
    both = [*product[:2], *product[3:7], *written[:2], *written[3:]]
    run_both("_configure", memory, [panels.ROWS])  # of this thread, for what follows
    for form in (1, 3):
        apart = run_both("_write_panel", run_both("_panel_product", memory, product)[form], [BF16, *written])[form]
        beside = run_both("_panel_product_beside", memory, both)[form]
        apart[1500:2524] = beside[1500:2524]  # what was written is not needed any more
        assert (beside.view(np.uint32) == apart.view(np.uint32)).all()
        assert not np.array_equal(beside[4000:4020], memory[4000:4020])
    run_both("_configure", memory, [0])


@pytest.mark.parametrize("bias", [0, At(3000)])
@pytest.mark.parametrize("kind", [SILU, GELU, panels.PLAIN])
def test_both_forms_of_writing_a_panel_agree(kind: int, bias: Any) -> None:
    memory = noise_memory()
    memory[3000:3016].view(np.uint16)[:] = memory[5000:5032].view(np.uint32) >> 16
    _, wide, _, compiled_wide = run_both("_write_panel", memory, [F32, kind, At(0), 7, bias, At(4000), 4 * 40])
    np.testing.assert_allclose(wide[4000:4280], compiled_wide[4000:4280], rtol=1e-5, atol=1e-6)
    assert not np.array_equal(wide[4000:4280], memory[4000:4280])
    _, left, _, compiled_left = run_both("_write_panel", memory, [BF16, kind, At(0), 7, bias, At(4000), 4 * 40])
    width = panels.PANEL if kind == panels.PLAIN else panels.PANEL // 2
    a, b = (
        np.stack([x[4000 + 40 * i :][: width // 2].view(np.uint16).astype(np.int64) for i in range(7)])
        for x in (left, compiled_left)
    )
    assert np.abs(a - b).max() <= (0 if kind == panels.PLAIN else 1)
    between = left[4000:4280].reshape(7, 40)[:, width // 2 :]
    assert (between == memory[4000:4280].reshape(7, 40)[:, width // 2 :]).all()
    assert (compiled_left[4000:4280].reshape(7, 40)[:, width // 2 :] == between).all()


@pytest.mark.parametrize("size", [32, 64, 96])
@pytest.mark.parametrize("scale", [F32, F16])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("rows", [1, 5, 9, 17, 32])
def test_both_forms_of_the_product_in_groups_agree(rows: int, bits: int, scale: int, size: int) -> None:
    memory = noise_memory()
    groups, item = 3, 4 if scale == F32 else 2
    group_floats = (panels.PANEL * size * bits // 8 + panels.PANEL * item) // 4
    for group in range(groups):
        scales = memory[20000 + (group + 1) * group_floats - panels.PANEL * item // 4 :][: panels.PANEL * item // 4]
        scales.view(np.float16 if scale == F16 else np.float32)[:] = memory[: panels.PANEL]
    for i in range(rows):
        _, memory, _, _ = run_both("_sum_groups", memory, [At(9000 + 80 * i), groups, size, 1 << bits - 1, At(i * 10)])
    arguments = [At(9000), 4 * 80, rows, At(0), 4 * 10, At(20000), bits, scale, groups, size, At(7000), At(30000), 1]
    run_both("_configure_groups", memory, [rows, size])  # of this thread, for what follows
    _, left, _, compiled_left = run_both("_grouped_product", memory, arguments)
    run_both("_configure", memory, [0])
    assert not np.array_equal(left, memory)
    sums, compiled_sums = (x[7000:][: rows * panels.PANEL] for x in (left, compiled_left))
    np.testing.assert_allclose(compiled_sums, sums, rtol=1e-6, atol=1e-6 * np.abs(sums).max())
    # sums of rows that there are not, and what lies in the room, are nobody's
    for kept in (slice(0, 7000), slice(7000 + 32 * panels.PANEL, 30000)):
        assert np.array_equal(compiled_left[kept].view(np.int32), memory[kept].view(np.int32))


@pytest.mark.parametrize("bias", [0, At(3000)])
@pytest.mark.parametrize("kind", [SILU, GELU, panels.PLAIN])
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_both_forms_of_writing_a_panel_of_groups_agree(dtype: int, kind: int, bias: Any) -> None:
    memory = noise_memory()
    arguments = [dtype, kind, At(0), 7, At(1000), bias, At(4000), 4 * 40]
    _, left, _, compiled_left = run_both("_write_group_panel", memory, arguments)
    if dtype == F32:
        np.testing.assert_allclose(compiled_left[4000:4280], left[4000:4280], rtol=2e-5, atol=1e-5)
    else:
        a, b = ((x[4000:4280].view(np.uint16).astype(np.uint32) << 16).view(np.float32) for x in (left, compiled_left))
        np.testing.assert_allclose(b, a, rtol=0 if kind == panels.PLAIN else 2**-7, atol=1e-30)
    assert (left[4280:] == memory[4280:]).all()
    assert (compiled_left[4280:] == memory[4280:]).all()


@pytest.mark.parametrize("floor", [-math.inf, -1.0, 0.0])
@pytest.mark.parametrize("groups", [1, 9])
def test_both_forms_of_the_draw_agree(floor: float, groups: int) -> None:
    memory = noise_memory(3)
    memory[:1000] = memory[:1000].round(1)
    memory[2000] = -math.inf
    memory[2002:2004].view(np.int64)[0] = -1
    top = float(memory[: 64 * groups].max())
    arguments = [At(0), groups, 640, top, 0.8, floor, 900, 77, 5, At(2000)]
    _, left, _, compiled_left = run_both("_perturbed_best", memory, arguments)
    assert left[2002:2004].view(np.int64)[0] == compiled_left[2002:2004].view(np.int64)[0] >= 0
    assert compiled_left[2000] == pytest.approx(left[2000], abs=1e-5)


def test_compiled_words_are_the_specifications() -> None:
    seed, index, position = 2**63 + 5, 3, 2**32 + 17
    low, high = noise.fold_key(seed, index)
    key = low | high << 32
    memory = np.zeros(SIZE, np.float32)
    _, _, _, left = run_both("_words", memory, [key - (1 << 64) if key >> 63 else key, position, 25, At(0)])
    expected = [noise.word(seed, index, position, token) for token in range(100, 164)]
    assert left[:64].view(np.uint32).tolist() == expected


@pytest.mark.parametrize("dtype", [BF16, F16])
def test_rounding_to_half_words_is_to_nearest_even_and_keeps_nan(dtype: int) -> None:
    special = [math.nan, -math.nan, math.inf, -math.inf, 0.0, -0.0, 1e30, -1e30, 1.00390625, 1.01171875, 1e-40, 65519.0]
    memory = np.zeros(SIZE, np.float32)
    memory[:12] = special
    memory[12:] = np.random.default_rng(0).integers(0, 2**32, SIZE - 12, dtype=np.uint32).view(np.float32)
    count = 10_000
    with np.errstate(all="ignore"):
        _, _, _, left = run_both("_narrow", memory, [dtype, At(0), At(20_000), count])
    torch_dtype = torch.bfloat16 if dtype == BF16 else torch.float16
    expected = torch.from_numpy(memory[:count]).to(torch_dtype)
    rounded = torch.from_numpy(left[20_000 : 20_000 + count // 2].copy()).view(torch_dtype)
    if dtype == BF16:
        # some CPUs take numbers that are too small to be normal for 0, as their products of bfloat16 do
        small = torch.from_numpy(np.abs(memory[:count]) < np.finfo(np.float32).tiny)
        rounded, expected = (torch.where(small, 0.0, held) for held in (rounded, expected))
    assert torch.equal(rounded.nan_to_num(7.0), expected.nan_to_num(7.0))
    assert torch.equal(rounded.isnan(), expected.isnan())


@pytest.mark.skipif("avx512f" not in host_features(), reason="this is how the whole run goes already")
def test_the_forms_for_a_cpu_without_avx512_agree_too() -> None:
    features = (
        "+avx,+avx2,+fma,+f16c,+sse,+sse2,+sse3,+ssse3,+sse4.1,+sse4.2,+popcnt,+bmi,+bmi2,+lzcnt,+64bit,+cmov,+cx8"
    )
    told = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": features}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, env={**os.environ, **told}, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed, 1 skipped" in done.stdout


def test_every_primitive_has_a_case() -> None:
    tested = {name for name, _ in CASES.values()} | {"_tile_softmax", "_perturbed_best"}
    tested |= {
        "_configure",
        "_panel_product",
        "_panel_product_beside",
        "_write_panel",
        "_byte_product",
        "_write_byte_panel",
    }
    tested |= {"_configure_groups", "_grouped_product", "_write_group_panel"}
    assert set(PRIMITIVES) == tested
