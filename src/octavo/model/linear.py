"""Matrix products with weights that stay: the replaceable part of the decoder.

A linear is anything callable that maps ``[M, K]`` to ``[M, N]``. Which kind serves a weight is data, chosen when the
weight is loaded by :class:`LinearFactory`, by a short measurement for each shape: oneDNN's packed weights are up to
twice as fast as plain ones at small M on some machines and slower at large M on others, and no rule of thumb holds for
both (measured). Where a CPU has a matrix unit, the backend's own products are a third kind: they read weights faster
than oneDNN's, and can apply a gate's activation before anything is written.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any, Protocol

import torch
from torch.nn import functional as F

from octavo.errors import EngineError


class Linear(Protocol):
    """``x [M, K] -> x W^T + bias [M, N]``, contiguous, in x's dtype."""

    @property
    def kind(self) -> str:
        """How it is done, for a person."""

    def __call__(self, x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """The product, in ``out`` or in fresh memory: a caller may write to it."""


class GatedLinear(Protocol):
    """``x [M, K] -> activation(gate) * up [M, N]``, written to ``out``; gate and up are the halves of one product."""

    def __call__(self, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """The gated product: ``out``."""


TILE = 16
"""Rows that every product has under ``batch_invariant``."""

_CACHE_LINE = 64  # bytes
_MEASURED_ROWS = (1, 16, 256)
_MEASURE_SECONDS = 0.02  # for each kind and number of rows
_MARGIN = 0.9  # of the other's time: a kind must be so much faster to be preferred over one named after it, lest the
# choice, and with it the last bits of a result, turn on the noise of a busy machine
_LARGEST_OUTPUT = 2**22  # elements; measuring lm_head at 256 rows would take a second for what is never run


def _into(out: torch.Tensor | None, result: torch.Tensor) -> torch.Tensor:
    return result if out is None else out.copy_(result)


class PlainLinear:
    """PyTorch's own product, on the weight as it is."""

    __slots__ = ("bias", "weight")
    kind = "plain"

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.weight = weight
        self.bias = bias

    def __call__(self, x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """The product."""
        return _into(out, F.linear(x, self.weight, self.bias))


class PackedLinear:
    """oneDNN's product, on a weight reordered once into the blocks its kernels read. Keeps no other copy.

    The operators are those PyTorch's compiler uses for frozen models on CPUs.
    """

    __slots__ = ("bias", "packed", "run")
    kind = "packed"

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        # The number of rows is a hint that oneDNN chooses the blocks by. Measured in float32: blocks for 1 row are no
        # faster at 1 row than those for 16, and up to 1.9 times slower from 2 rows on; in bfloat16 they are alike.
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, TILE)
        self.bias = bias
        self.run = torch.ops.mkldnn._linear_pointwise.default

    def __call__(self, x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """The product."""
        return _into(out, self.run(x, self.packed, self.bias, "none", (), ""))


class TiledLinear:
    """Another linear, always run on exactly :data:`TILE` rows; what fills up the last ones does not matter.

    Libraries choose blocks and the order of summation by the number of rows, so that a row's result may change in its
    last bits with the size of the batch. With one size there is one order, and a row's result depends on the row alone
    (He et al., "Defeating Nondeterminism in LLM Inference", 2025, name the cause and the cure). Some choose by the
    alignment of their input too, so a tile that does not start on a cache line is copied to where one does.
    """

    __slots__ = ("inner", "padded")

    def __init__(self, inner: Linear, width: int, dtype: torch.dtype) -> None:
        self.inner = inner
        self.padded = torch.zeros(TILE, width, dtype=dtype)

    @property
    def kind(self) -> str:
        """As in the notes."""
        return f"{self.inner.kind}, {TILE} rows at a time"

    def __call__(self, x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """The product."""
        rows, stride = x.shape[0], TILE * x.shape[1] * x.itemsize
        aligned = x.data_ptr() % _CACHE_LINE == 0 and stride % _CACHE_LINE == 0
        parts = []
        for start in range(0, rows, TILE):
            tile = x[start : start + TILE]
            count = tile.shape[0]
            if count < TILE or not aligned:
                self.padded[:count] = tile
                tile = self.padded
            parts.append(self.inner(tile)[:count])
        return _into(out, parts[0] if len(parts) == 1 else torch.cat(parts))


class ThenGate:
    """A linear, then the backend's activation."""

    __slots__ = ("activate", "inner")

    def __init__(self, inner: Linear, activate: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        self.inner = inner
        self.activate = activate

    def __call__(self, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """The gated product."""
        return self.activate(self.inner(x), out)


def packing_available(dtype: torch.dtype) -> bool:
    """Whether oneDNN's packed products exist in this build of PyTorch, for this dtype, on this machine. They are no
    public API, so they are tried rather than assumed."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    try:
        weight, x = torch.ones(16, 32, dtype=dtype), torch.ones(2, 32, dtype=dtype)
        result = PackedLinear(weight, torch.ones(16, dtype=dtype))(x)
        return result.dtype == dtype and bool((result == 33).all())
    except (RuntimeError, AttributeError, NotImplementedError):
        return False


class LinearFactory:
    """Chooses how each weight is served.

    Args:
        dtype: of weights and activations.
        device: only on "cpu" is there a choice.
        batch_invariant: run every product on :data:`TILE` rows, and prove for each shape that a row's result then
            depends on the row alone.
        kernels: the backend: its ``PanelLinear`` is offered where it has one that this machine is good at.
    """

    def __init__(
        self, dtype: torch.dtype, device: torch.device, kernels: ModuleType, batch_invariant: bool = False
    ) -> None:
        self.dtype = dtype
        self.batch_invariant = batch_invariant
        self._kernels = kernels
        kinds: list[Any] = [PlainLinear]
        if device.type == "cpu" and packing_available(dtype):
            kinds.append(PackedLinear)
        self._kinds = kinds
        panels = getattr(kernels, "PanelLinear", None)
        self._panels: Any = panels if device.type == "cpu" and panels is not None and panels.available() else None
        self._choices: dict[tuple[int, int, bool], Any] = {}
        self._notes: dict[tuple[int, int, bool], str] = {}

    @property
    def notes(self) -> list[str]:
        """One line for each shape: what was chosen, and the times that decided."""
        return list(self._notes.values())

    def build(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> Linear:
        """A linear that owns ``weight`` (``[N, K]``, contiguous); the caller should drop it.

        Raises:
            EngineError: ``batch_invariant``, and no product of this machine keeps rows apart.
        """
        kind = self._kind(weight, bias)
        return self._tiled(kind(weight, bias), weight.shape[1]) if self.batch_invariant else kind(weight, bias)

    def build_gated(self, weight: torch.Tensor, bias: torch.Tensor | None, activation: str) -> GatedLinear:
        """A linear whose first half of columns is the gate of the second: ``activation`` names the backend's kernel.

        Raises:
            EngineError: as :meth:`build`.
        """
        if not self.batch_invariant and self._kind(weight, bias) is self._panels:
            gated: GatedLinear = self._panels(weight, bias, activation)
            return gated
        return ThenGate(self.build(weight, bias), getattr(self._kernels, activation))

    def _kind(self, weight: torch.Tensor, bias: torch.Tensor | None) -> Any:
        """The kind for a weight's shape: chosen once."""
        key = (weight.shape[0], weight.shape[1], bias is not None)
        if key not in self._choices:
            kinds = [*self._kinds, self._panels] if self._panels and self._panels.serves(weight) else self._kinds
            choose = self._prove if self.batch_invariant else self._measure
            self._choices[key], self._notes[key] = choose(kinds, weight, bias)
        return self._choices[key]

    def _tiled(self, inner: Linear, width: int) -> TiledLinear:
        return TiledLinear(inner, width, self.dtype)

    def _prove(self, kinds: list[Any], weight: torch.Tensor, bias: torch.Tensor | None) -> tuple[Any, str]:
        """The last kind whose rows are proved independent.

        Raises:
            EngineError: there is none.
        """
        name, width = f"{weight.shape[0]}x{weight.shape[1]}", weight.shape[1]
        for kind in reversed(kinds):
            tiled = self._tiled(kind(weight, bias), width)
            if keeps_rows_apart(tiled.inner, width, self.dtype):
                return kind, f"linear {name}: {tiled.kind} (rows proved independent)"
        raise EngineError(
            f"batch_invariant=True cannot be honoured: on this machine a row of a {name} product in "
            f"{self.dtype} depends on the rows beside it; use batch_invariant=False, or dtype='float32'"
        )

    def _measure(self, kinds: list[Any], weight: torch.Tensor, bias: torch.Tensor | None) -> tuple[Any, str]:
        """The last kind, unless an earlier one's times over several batch sizes have a geometric mean that is clearly
        less."""
        name = f"linear {weight.shape[0]}x{weight.shape[1]}"
        if len(kinds) == 1:
            return kinds[0], f"{name}: {kinds[0].kind} (the only kind here)"
        rows = [count for count in _MEASURED_ROWS if count == 1 or count * weight.shape[0] <= _LARGEST_OUTPUT]
        inputs = [torch.randn(count, weight.shape[1]).to(self.dtype) for count in rows]
        times = {}
        for kind in kinds:
            linear = kind(weight, bias)
            times[kind] = [_seconds(linear, x) for x in inputs]
        best = kinds[-1]
        for kind in kinds[:-1]:
            if math.prod(times[kind]) < math.prod(times[best]) * _MARGIN ** len(rows):
                best = kind
        figures = "; ".join(
            f"{kind.kind} {'/'.join(f'{seconds * 1e6:.0f}' for seconds in times[kind])}" for kind in kinds
        )
        return best, f"{name}: {best.kind} (microseconds at {'/'.join(map(str, rows))} rows: {figures})"


def keeps_rows_apart(linear: Linear, width: int, dtype: torch.dtype) -> bool:
    """Whether a row of a product of :data:`TILE` rows has the same bits at every place in the tile and beside any
    other rows."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(TILE, width, generator=generator).to(dtype)
    whole = linear(x).clone()
    for shift in range(1, TILE):
        if not torch.equal(linear(x.roll(shift, 0)), whole.roll(shift, 0)):
            return False
    for kept in (0, 1, TILE // 2, TILE - 1):
        other = torch.randn(TILE, width, generator=generator).to(dtype) * 100
        other[kept] = x[kept]
        alone = torch.zeros(TILE, width, dtype=dtype)
        alone[kept] = x[kept]
        if not (torch.equal(linear(other)[kept], whole[kept]) and torch.equal(linear(alone)[kept], whole[kept])):
            return False
    return True


def _seconds(linear: Linear, x: torch.Tensor) -> float:
    """The least time of a few runs, the first of which only warms up."""
    linear(x)
    best, spent, runs = math.inf, 0.0, 0
    while runs < 3 or (spent < _MEASURE_SECONDS and runs < 50):
        started = time.perf_counter()
        linear(x)
        seconds = time.perf_counter() - started
        best, spent, runs = min(best, seconds), spent + seconds, runs + 1
    return best
