"""Rows of a table, looked up by token."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch

from octavo.kernels.quantized import QuantizedWeight


class Embedding(Protocol):
    """Token ids to rows of activations."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the rows."""

    @property
    def device(self) -> torch.device:
        """Where they are."""

    def __call__(self, token_ids: torch.Tensor, out: torch.Tensor) -> None:
        """Write the rows of ``token_ids`` (int64 ``[T]``) to ``out`` ``[T, hidden]``."""

    def bytes_beside(self, head: object) -> int:
        """What it takes in memory for itself, and does not share with the head."""


class FullEmbedding:
    """A table ``[vocab, hidden]`` as it is."""

    __slots__ = ("table",)

    def __init__(self, table: torch.Tensor) -> None:
        self.table = table

    @property
    def dtype(self) -> torch.dtype:
        """Of the rows."""
        return self.table.dtype

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self.table.device

    def __call__(self, token_ids: torch.Tensor, out: torch.Tensor) -> None:
        """Look up."""
        torch.index_select(self.table, 0, token_ids, out=out)

    def bytes_beside(self, head: object) -> int:
        """The table's, unless the head is a plain product with it."""
        return 0 if getattr(head, "weight", None) is self.table else self.table.nbytes


@runtime_checkable
class HasRows(Protocol):
    """A weight in few bits, or a product with one, that can tell rows of it."""

    def rows(self, indexes: torch.Tensor) -> QuantizedWeight:
        """The rows of ``indexes``, int64 ``[T]``."""


class QuantizedEmbedding:
    """A table in few bits: rows are made full when they are looked up.

    Args:
        source: whose rows they are. Where embeddings are tied that is the head, so that the table is held once.
        dtype: of the rows.
        device: where they are.
    """

    __slots__ = ("device", "dtype", "source")

    def __init__(self, source: HasRows, dtype: torch.dtype, device: torch.device) -> None:
        self.source = source
        self.dtype = dtype
        self.device = device

    def __call__(self, token_ids: torch.Tensor, out: torch.Tensor) -> None:
        """Look up."""
        out.copy_(self.source.rows(token_ids).dequantized())

    def bytes_beside(self, head: object) -> int:
        """The weight's, unless the rows are the head's own."""
        return self.source.nbytes if isinstance(self.source, QuantizedWeight) else 0


@runtime_checkable
class LooksUp(Protocol):
    """A product that can tell rows of its weight."""

    def look_up(self, indexes: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """Write the rows of ``indexes`` (int64 ``[T]``) to ``out``, which is returned."""


class SharedEmbedding:
    """The weight of the head, where the two are tied: held once, as the head's product wants it.

    Args:
        head: the product.
        dtype: of the rows.
        device: where they are.
    """

    __slots__ = ("device", "dtype", "head", "recordable")

    def __init__(self, head: LooksUp, dtype: torch.dtype, device: torch.device) -> None:
        self.head = head
        self.recordable = bool(getattr(head, "recordable", False))  #: whether programs can hold it
        self.dtype = dtype
        self.device = device

    def __call__(self, token_ids: torch.Tensor, out: torch.Tensor) -> None:
        """Look up."""
        self.head.look_up(token_ids, out)

    def bytes_beside(self, head: object) -> int:
        """Nothing."""
        return 0
