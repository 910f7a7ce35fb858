"""Matrix products: the kinds agree, the choice is measured, and under batch_invariant a row keeps its bits."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo import kernels
from octavo.errors import ConfigError, EngineError, UnsupportedModelError
from octavo.model import choosing
from octavo.model import linear as module
from octavo.model.linear import (
    TILE,
    LinearFactory,
    PackedLinear,
    PlainLinear,
    ThenGate,
    TiledLinear,
    keeps_rows_apart,
    packing_available,
)
from octavo.model.quantized import quantize

CPU = torch.device("cpu")
REFERENCE = kernels.load("reference")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def weights(rows: int, width: int, dtype: torch.dtype, bias: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    generator = torch.Generator().manual_seed(rows * 1000 + width)
    weight = torch.randn(rows, width, generator=generator).to(dtype)
    return weight, torch.randn(rows, generator=generator).to(dtype) if bias else None


@settings(max_examples=40, deadline=None)
@given(
    dtype=st.sampled_from(DTYPES),
    rows=st.integers(1, 70),
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    bias=st.booleans(),
    kind=st.sampled_from(["plain", "packed", "tiled"]),
)
def test_every_kind_gives_the_product(
    dtype: torch.dtype, rows: int, width: int, height: int, bias: bool, kind: str
) -> None:
    if kind == "packed" and not packing_available(dtype):
        pytest.skip("no packed products on this machine")
    weight, offset = weights(height, width, dtype, bias)
    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(rows)).to(dtype)
    exact = x.double() @ weight.double().T + (0 if offset is None else offset.double())
    linear = {
        "plain": lambda: PlainLinear(weight, offset),
        "packed": lambda: PackedLinear(weight, offset),
        "tiled": lambda: TiledLinear(PlainLinear(weight, offset), width, dtype),
    }[kind]()
    result = linear(x)
    assert result.shape == (rows, height)
    assert result.dtype == dtype
    assert result.is_contiguous()
    room = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 3e-3}[dtype]
    torch.testing.assert_close(result.double(), exact, atol=room * width**0.5, rtol=room)


def test_tiles_leave_their_input_alone_and_no_trace_of_the_last() -> None:
    weight, _ = weights(8, 4, torch.float32, False)
    linear = TiledLinear(PlainLinear(weight, None), 4, torch.float32)
    x = torch.full((TILE - 1, 4), float("nan"))
    assert linear(x).isnan().all()
    ones = torch.ones(3, 4)
    assert torch.equal(linear(ones), linear(torch.ones(TILE, 4))[:3])
    assert torch.equal(ones, torch.ones(3, 4))


@settings(max_examples=25, deadline=None)
@given(
    width=st.sampled_from([16, 95, 96, 240, 576]),
    height=st.sampled_from([32, 144, 960]),
    rows=st.integers(1, 100),
    data=st.data(),
)
def test_batch_invariant_rows_do_not_depend_on_the_batch(
    width: int, height: int, rows: int, data: st.DataObject
) -> None:
    weight, bias = weights(height, width, torch.float32, True)
    linear = LinearFactory(torch.float32, CPU, REFERENCE, batch_invariant=True).build(weight, bias)
    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(rows))
    whole = linear(x)
    row = data.draw(st.integers(0, rows - 1))
    first = data.draw(st.integers(0, row))
    last = data.draw(st.integers(row + 1, rows))
    assert torch.equal(linear(x[row : row + 1])[0], whole[row])
    assert torch.equal(linear(x[first:last])[row - first], whole[row])
    shifted = torch.empty(rows * width + 1)[1:].view(rows, width).copy_(x)
    assert torch.equal(linear(shifted), whole)


class Leaky:
    """A product that mixes rows up in the last bits, as a library may."""

    kind = "leaky"

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.weight = weight

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        result = x @ self.weight.T
        result[1:] = torch.nextafter(result[1:], torch.tensor(torch.inf))  # by its place in the tile
        return result


class Contagious(Leaky):
    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight.T + 1e-3 * x.sum()


@pytest.mark.parametrize("kind", [Leaky, Contagious])
def test_the_proof_finds_products_that_mix_rows(kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, _ = weights(32, 64, torch.float32, False)
    assert keeps_rows_apart(TiledLinear(PlainLinear(weight, None), 64, torch.float32).inner, 64, torch.float32)
    assert not keeps_rows_apart(kind(weight, None), 64, torch.float32)
    factory = LinearFactory(torch.float32, CPU, REFERENCE, batch_invariant=True)
    factory._kinds = [PlainLinear, kind]
    assert factory.build(weight).kind.startswith("plain")  # falls back to the next kind
    factory = LinearFactory(torch.float32, CPU, REFERENCE, batch_invariant=True)
    factory._kinds = [kind]
    with pytest.raises(EngineError, match="batch_invariant"):
        factory.build(weight)


def test_the_faster_kind_is_chosen_once_for_each_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[tuple[str, int]] = []

    def seconds(linear: module.Linear, x: torch.Tensor) -> float:
        measured.append((linear.kind, x.shape[0]))
        return 1.0 if linear.kind == "plain" else 0.5

    class Other(PlainLinear):
        kind = "other"

    monkeypatch.setattr(choosing, "_seconds", seconds)
    factory = LinearFactory(torch.float32, CPU, REFERENCE)
    factory._kinds = [PlainLinear, Other]
    for _ in range(3):
        assert factory.build(weights(32, 64, torch.float32, False)[0]).kind == "other"
    assert measured == [(kind, rows) for kind in ("plain", "other") for rows in (1, 16, 256)] * 2
    assert factory.build(weights(64, 32, torch.float32, False)[0]).kind == "other"
    assert len(factory.notes) == 2
    assert "linear 32x64: other" in factory.notes[0]
    assert "500000" in factory.notes[0]


def test_a_kind_may_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "_seconds", lambda linear, x: pytest.fail("nothing is to be measured"))
    monkeypatch.setattr(module, "packing_available", lambda dtype: True)
    backend = SimpleNamespace(PanelLinear=Panels, QUANTIZED_LINEARS=(), silu_and_mul=REFERENCE.silu_and_mul)
    weight, bias = weights(64, 32, torch.float32, True)
    for wanted in ("plain", "packed", "panels"):
        factory = LinearFactory(torch.float32, CPU, backend, chooser=choosing.KindChooser(wanted))  # type: ignore[arg-type]
        assert factory.build(weight, bias).kind == wanted
        assert factory.notes == [f"linear 64x32+bias: {wanted} (as configured)"]
    with pytest.raises(ConfigError, match=r"linear_kind='panels'.*use auto, measure, plain"):
        LinearFactory(torch.float32, CPU, REFERENCE, chooser=choosing.KindChooser("panels"))


def test_without_packing_there_is_one_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "packing_available", lambda dtype: False)
    factory = LinearFactory(torch.float32, CPU, REFERENCE)
    weight, bias = weights(32, 64, torch.float32, True)
    assert factory.build(weight, bias).kind == "plain"
    assert "only kind" in factory.notes[0]


def test_a_build_without_onednn_has_no_packing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not packing_available(torch.float32)


def test_packing_that_fails_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(PackedLinear):
        def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
            raise RuntimeError("no kernel for this machine")

    monkeypatch.setattr(module, "PackedLinear", Broken)
    assert not packing_available(torch.float32)


class Panels(PlainLinear):
    """Stands for a backend's own products, which take some weights only."""

    kind = "panels"

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None, activation: str | None = None) -> None:
        super().__init__(weight, bias)
        self.activation = activation

    @staticmethod
    def available() -> bool:
        return True

    @staticmethod
    def serves(weight: torch.Tensor) -> bool:
        return weight.shape[0] % 32 == 0


def test_the_backends_own_products_are_offered_for_the_weights_they_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "_seconds", lambda linear, x: 1.0)
    backend = SimpleNamespace(PanelLinear=Panels, QUANTIZED_LINEARS=(), silu_and_mul=REFERENCE.silu_and_mul)
    factory = LinearFactory(torch.float32, CPU, backend)  # type: ignore[arg-type]
    weight, bias = weights(64, 32, torch.float32, True)
    assert factory.build(weight, bias).kind == "panels"
    assert factory.build(*weights(40, 32, torch.float32, True)).kind != "panels"
    gated = factory.build_gated(weight, bias, "silu_and_mul")
    assert isinstance(gated, Panels)
    assert gated.activation == "silu_and_mul"
    monkeypatch.setattr(Panels, "available", staticmethod(lambda: False))
    factory = LinearFactory(torch.float32, CPU, backend)  # type: ignore[arg-type]
    assert factory.build(weight, bias).kind != "panels"
    assert isinstance(factory.build_gated(weight, bias, "silu_and_mul"), ThenGate)


@pytest.mark.parametrize("batch_invariant", [False, True])
@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", ["silu_and_mul", "gelu_and_mul"])
def test_a_gated_product_is_the_activation_of_its_halves(
    backend: str, dtype: torch.dtype, activation: str, batch_invariant: bool
) -> None:
    if batch_invariant and dtype != torch.float32 and not kernels.load("cpu").PanelLinear.available():
        pytest.skip("not every machine has products of this dtype that keep rows apart")
    weight, bias = weights(192, 64, dtype, True)
    assert bias is not None
    factory = LinearFactory(dtype, CPU, kernels.load(backend), batch_invariant=batch_invariant)
    x = torch.randn(37, 64, generator=torch.Generator().manual_seed(1)).to(dtype)
    out = torch.full((37, 96), torch.nan, dtype=dtype)
    assert factory.build_gated(weight, bias, activation)(x, out) is out
    gate, up = (x.double() @ weight.double().T + bias.double()).chunk(2, dim=1)
    expected = up * (F.silu(gate) if activation.startswith("silu") else F.gelu(gate, approximate="tanh"))
    room = 1e-4 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(out.double(), expected, atol=room * 8, rtol=room)


def test_a_backend_without_products_in_few_bits_says_so() -> None:
    """Triton's, so far."""
    kernels = SimpleNamespace(__name__="none", silu_and_mul=None)
    factory = LinearFactory(torch.float32, torch.device("cpu"), kernels)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedModelError, match="weights in 8 bits cannot be computed with on cpu yet: use device"):
        factory.build(quantize(torch.randn(8, 32), 8))
