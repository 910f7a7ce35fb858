"""Matrix products with weights that stay: the replaceable part of the decoder.

A linear is anything callable that maps ``[M, K]`` to ``[M, N]``. Which kind serves a weight is data, chosen when the
weight is loaded by :class:`LinearFactory`, by a short measurement for each shape: oneDNN's packed weights are up to
twice as fast as plain ones at small M on some machines and slower at large M on others, and no rule of thumb holds for
both (measured). Where a CPU has a matrix unit, the backend's own products are a third kind: they read weights faster
than oneDNN's, and can apply a gate's activation before anything is written.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any, Protocol

import torch
from torch.nn import functional as F

from octavo.errors import ConfigError, EngineError, UnsupportedModelError
from octavo.kernels.quantized import QuantizedWeight
from octavo.model.choosing import KindChooser


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


class QuantizedProduct(Linear, Protocol):
    """A product with a weight in few bits."""

    recordable: bool  #: whether programs can hold it
    widens: bool  #: whether ``out`` may be float32 whatever x is


TILE = 16
"""Rows that every product has under ``batch_invariant``."""

_CACHE_LINE = 64  # bytes
_GPU_ALIGNMENT = 256  # bytes: cuBLASLt is told of alignments up to this one, and chooses by them


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
        if out is None or out.device.type == "cpu":
            return _into(out, F.linear(x, self.weight, self.bias))
        # On a GPU the copy would be one more launch.
        weight = self.weight.t()
        return torch.mm(x, weight, out=out) if self.bias is None else torch.addmm(self.bias, x, weight, out=out)


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
    alignment of their input too, so a tile that does not start on a cache line (on a GPU: on 256 bytes) is copied to
    where one does.
    """

    __slots__ = ("inner", "padded")

    def __init__(self, inner: Linear, width: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> None:
        self.inner = inner
        self.padded = torch.zeros(TILE, width, dtype=dtype, device=device)

    @property
    def kind(self) -> str:
        """As in the notes."""
        return f"{self.inner.kind}, {TILE} rows at a time"

    def __call__(self, x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """The product."""
        rows, stride = x.shape[0], TILE * x.shape[1] * x.itemsize
        alignment = _CACHE_LINE if x.device.type == "cpu" else _GPU_ALIGNMENT
        aligned = x.data_ptr() % alignment == 0 and stride % alignment == 0
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
        chooser: chooses among what is offered [by measuring, and forgets].

    Raises:
        ConfigError: the chooser wants a kind that is not offered here.
    """

    def __init__(
        self,
        dtype: torch.dtype,
        device: torch.device,
        kernels: ModuleType,
        batch_invariant: bool = False,
        chooser: KindChooser | None = None,
    ) -> None:
        self.dtype = dtype
        self.device = device
        self.batch_invariant = batch_invariant
        self._kernels = kernels
        kinds: list[Any] = [PlainLinear]
        if device.type == "cpu" and packing_available(dtype):
            kinds.append(PackedLinear)
        self._kinds = kinds
        panels = getattr(kernels, "PanelLinear", None)
        self._panels: Any = panels if device.type == "cpu" and panels is not None and panels.available() else None
        self._chooser = chooser or KindChooser()
        offered = [kind.kind for kind in (*kinds, self._panels) if kind is not None]
        if self._chooser.wanted not in ("auto", "measure", *offered):
            raise ConfigError(
                f"linear_kind={self._chooser.wanted!r} is not to be had here, with weights in {dtype} on this machine: "
                f"use auto, measure, {', '.join(offered)}"
            )
        self._quantized = [kind for kind in getattr(kernels, "QUANTIZED_LINEARS", ()) if kind.available()]
        self._choices: dict[tuple[int, int, bool], Any] = {}
        self._notes: dict[tuple[int, int, bool], str] = {}

    @property
    def notes(self) -> list[str]:
        """One line for each shape: what was chosen, and the times that decided."""
        return list(self._notes.values())

    @property
    def full_is_quick(self) -> bool:
        """Whether products with weights in full keep up with those of bytes: a matrix unit does both, which takes twice
        as long for the former; vectors of bytes do seven times the work of others."""
        return (
            self._panels is not None
            and self._panels.by_tiles()
            and self.dtype == torch.bfloat16
            and not self.batch_invariant
        )

    def build(self, weight: torch.Tensor | QuantizedWeight, bias: torch.Tensor | None = None) -> Linear:
        """A linear that owns ``weight`` (``[N, K]``, contiguous); the caller should drop it.

        Raises:
            EngineError: ``batch_invariant``, and no product of this machine keeps rows apart.
        """
        if isinstance(weight, QuantizedWeight):
            return self.build_quantized(weight, bias)
        kind = self._kind(weight, bias)
        return self._tiled(kind(weight, bias), weight.shape[1]) if self.batch_invariant else kind(weight, bias)

    def build_quantized(
        self, weight: QuantizedWeight, bias: torch.Tensor | None = None, activation: str | None = None
    ) -> QuantizedProduct:
        """A product with a weight in few bits: the first kind that serves it. Sums of whole numbers are exact, so that
        a row's result never depends on the rows beside it.

        Raises:
            UnsupportedModelError: the backend has no products with weights in few bits.
        """
        if not self._quantized:
            raise UnsupportedModelError(
                f"weights in {weight.bits} bits cannot be computed with on {self.device} yet: use device='cpu', or a "
                "checkpoint in full and quantization=None"
            )
        kind = next(kind for kind in self._quantized if kind.serves(weight))
        made: QuantizedProduct = kind(weight, bias, activation)
        rows, inputs = weight.shape
        self._notes[rows, inputs, bias is not None] = f"linear {rows}x{inputs}: {made.kind} (by its bits and groups)"
        return made

    def build_beside_quantized(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> Linear:
        """A product with a weight in full, in a layer of others in few bits: by panels where they serve it, since
        programs hold them beside those.

        Raises:
            EngineError: as :meth:`build`.
        """
        if not self.full_is_quick or not self._panels.serves(weight):
            return self.build(weight, bias)
        made: Linear = self._panels(weight, bias)
        rows, inputs = weight.shape
        self._notes[rows, inputs, bias is not None] = f"linear {rows}x{inputs}: {made.kind} (kept in full)"
        return made

    def build_gated(
        self, weight: torch.Tensor | QuantizedWeight, bias: torch.Tensor | None, activation: str
    ) -> GatedLinear:
        """A linear whose first half of columns is the gate of the second: ``activation`` names the backend's kernel.

        Raises:
            EngineError: as :meth:`build`.
        """
        if isinstance(weight, QuantizedWeight):
            return self.build_quantized(weight, bias, activation)
        if not self.batch_invariant and self._kind(weight, bias) is self._panels:
            gated: GatedLinear = self._panels(weight, bias, activation)
            return gated
        return ThenGate(self.build(weight, bias), getattr(self._kernels, activation))

    def _kind(self, weight: torch.Tensor, bias: torch.Tensor | None) -> Any:
        """The kind for a weight's shape: chosen once."""
        key = (weight.shape[0], weight.shape[1], bias is not None)
        if key not in self._choices:
            kinds = [*self._kinds, self._panels] if self._panels and self._panels.serves(weight) else self._kinds
            choose = self._prove if self.batch_invariant else self._chooser.choose
            self._choices[key], self._notes[key] = choose(kinds, weight, bias)
        return self._choices[key]

    def _tiled(self, inner: Linear, width: int) -> TiledLinear:
        return TiledLinear(inner, width, self.dtype, self.device)

    def _prove(self, kinds: list[Any], weight: torch.Tensor, bias: torch.Tensor | None) -> tuple[Any, str]:
        """The last kind whose rows are proved independent.

        Raises:
            EngineError: there is none.
        """
        name, width = f"{weight.shape[0]}x{weight.shape[1]}", weight.shape[1]
        for kind in reversed(self._chooser.candidates(kinds)):
            tiled = self._tiled(kind(weight, bias), width)
            if keeps_rows_apart(tiled.inner, width, self.dtype, self.device):
                return kind, f"linear {name}: {tiled.kind} (rows proved independent)"
        raise EngineError(
            f"batch_invariant=True cannot be honoured: on this machine a row of a {name} product in "
            f"{self.dtype} depends on the rows beside it; use batch_invariant=False, or dtype='float32'"
        )


def keeps_rows_apart(linear: Linear, width: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> bool:
    """Whether a row of a product of :data:`TILE` rows has the same bits at every place in the tile and beside any
    other rows."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(TILE, width, generator=generator).to(device, dtype)
    whole = linear(x).clone()
    for shift in range(1, TILE):
        if not torch.equal(linear(x.roll(shift, 0)), whole.roll(shift, 0)):
            return False
    for kept in (0, 1, TILE // 2, TILE - 1):
        other = torch.randn(TILE, width, generator=generator).to(device, dtype) * 100
        other[kept] = x[kept]
        alone = torch.zeros(TILE, width, dtype=dtype, device=device)
        alone[kept] = x[kept]
        if not (torch.equal(linear(other)[kept], whole[kept]) and torch.equal(linear(alone)[kept], whole[kept])):
            return False
    return True
