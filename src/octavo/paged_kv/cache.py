"""The cache: one pool of blocks, the tables of its sequences, attention over them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from octavo import kernels as kernel_backends
from octavo.config import KV_CACHE_DTYPES, SchedulerConfig
from octavo.errors import ConfigError, OutOfBlocksError, RequestError
from octavo.executor.swap_space import SwapSpace
from octavo.kernels import KvLayout
from octavo.kernels.reference.cache import read_kv
from octavo.memory import MemoryManager
from octavo.paged_kv.batch import PagedBatch, describe
from octavo.paged_kv.sequence import PagedSequence
from octavo.plan import HOLE, LayerGroup
from octavo.request import Request, SamplingParams, Sequence

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True)
class CacheUsage:
    """How full a cache is."""

    num_blocks: int
    num_used: int  #: blocks held by at least one sequence
    num_shared: int  #: blocks held by more than one
    num_free: int
    num_host_blocks: int
    num_host_used: int
    num_tokens: int  #: tokens written and on the device; those in shared blocks once
    utilisation: float  #: tokens over the slots of held blocks; 1.0 when nothing is held
    bytes_total: int
    bytes_used: int


class PagedKVCache:
    """Keys and values of many sequences in fixed-size blocks of one pool: no room is set aside for tokens that may
    never come, and none is lost between sequences (PagedAttention, SOSP '23).

    Args:
        num_blocks: blocks in the pool.
        block_size: tokens a block holds.
        num_layers: of your model; a block holds its tokens' keys and values of every layer.
        num_kv_heads: key/value heads a layer has.
        head_dim: of a head.
        dtype: float32, bfloat16 or float16: of the keys, values and queries you bring.
        kv_cache_dtype: of keys and values in memory: "auto" is ``dtype``, "int8" stores them in 8 bits with a scale
            for each token and KV head.
        device: "cpu", or a CUDA device (attention there runs in plain torch).
        window: a token attends to itself and the ``window - 1`` before it [to all]. Blocks that have left it are given
            back when the sequence next takes tokens: no longer needs more than the window and its newest tokens fill.
        num_host_blocks: host memory for swapped sequences, in blocks (pinned where the device is a GPU).
        kernels: "cpu" (compiled), "triton" (on a GPU), "reference" (plain torch), or "auto".

    Raises:
        ConfigError: a size or the dtype cannot be honoured.
    """

    def __init__(
        self,
        *,
        num_blocks: int,
        num_layers: int,
        num_kv_heads: int,
        head_dim: int,
        block_size: int = 16,
        dtype: torch.dtype = torch.float32,
        kv_cache_dtype: str = "auto",
        device: torch.device | str = "cpu",
        window: int | None = None,
        num_host_blocks: int = 0,
        kernels: str = "auto",
    ) -> None:
        sizes = {
            "num_blocks": num_blocks,
            "block_size": block_size,
            "num_layers": num_layers,
            "num_kv_heads": num_kv_heads,
            "head_dim": head_dim,
            "window": 1 if window is None else window,
            "num_host_blocks": num_host_blocks + 1,
        }
        for name, value in sizes.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} is out of range: give a whole number of blocks, tokens or heads")
        if dtype not in DTYPES:
            raise ConfigError(f"dtype={dtype} is not supported: use float32, bfloat16 or float16")
        if kv_cache_dtype not in KV_CACHE_DTYPES:
            raise ConfigError(f"kv_cache_dtype={kv_cache_dtype!r} is unknown: use {', '.join(KV_CACHE_DTYPES)}")
        self.device = torch.device(device)
        if kernels not in ("auto", *kernel_backends.BACKENDS):
            raise ConfigError(f"kernels={kernels!r} is unknown: use auto, {', '.join(kernel_backends.BACKENDS)}")
        if kernels == "cpu" and self.device.type != "cpu":
            raise ConfigError(f"kernels='cpu' cannot read memory on {self.device}: use 'reference' or 'auto'")
        if kernels == "triton" and self.device.type != "cuda":
            raise ConfigError(f"kernels='triton' cannot read memory on {self.device}: use 'cpu' or 'auto'")
        if kernels == "auto":
            kernels = "cpu" if self.device.type == "cpu" else "reference"
        self._kernels = kernel_backends.load(kernels)
        self.block_size = block_size
        self.window = window
        self.dtype = dtype
        stored = torch.int8 if kv_cache_dtype == "int8" else dtype
        self._layout = KvLayout(num_layers, num_kv_heads, head_dim, block_size, stored)
        self._pages = self._layout.allocate(num_blocks, self.device)
        self._kv = self._layout.view(self._pages)
        self._swap_space = SwapSpace(num_host_blocks, self._layout.page_bytes, self.device)
        self._memory = MemoryManager(
            SchedulerConfig(
                num_blocks=num_blocks,
                block_size=block_size,
                prefix_caching=False,
                num_host_blocks=num_host_blocks,
                groups=(LayerGroup(num_layers, window),),
            )
        )
        self._swaps = self._memory.swaps
        self._sequences: dict[str, PagedSequence] = {}
        self._count = 0

    # -- sequences ---------------------------------------------------------------------------------------------

    def sequence(self, name: str | None = None) -> PagedSequence:
        """A new, empty sequence.

        Raises:
            RequestError: the name is taken.
        """
        self._count += 1
        name = name if name is not None else f"sequence_{self._count}"
        if name in self._sequences:
            raise RequestError(f"a sequence named {name!r} exists: choose another name, or free it first")
        request = Request(name, [], SamplingParams(), salt=None)
        seq = PagedSequence(self, name, Sequence(self._count, request, 0, []))
        self._sequences[name] = seq
        return seq

    def usage(self) -> CacheUsage:
        """How full the cache is at this moment."""
        resident = [seq._inner for seq in self._sequences.values() if not seq.is_swapped]
        snapshot = self._memory.snapshot(resident)
        return CacheUsage(
            num_blocks=len(snapshot.owner),
            num_used=snapshot.num_used,
            num_shared=snapshot.num_shared,
            num_free=snapshot.num_free,
            num_host_blocks=self._swaps.host.num_blocks,
            num_host_used=self._swaps.host.num_blocks - self._swaps.host.num_free,
            num_tokens=snapshot.filled_slots,
            utilisation=snapshot.utilisation,
            bytes_total=len(snapshot.owner) * self._layout.page_bytes,
            bytes_used=snapshot.num_used * self._layout.page_bytes,
        )

    # -- a forward pass ----------------------------------------------------------------------------------------

    def batch(self, counts: Mapping[PagedSequence, int]) -> PagedBatch:
        """Make room for new tokens, so many for each sequence: grows tables and copies shared partial blocks now,
        before any layer writes. All or nothing.

        Args:
            counts: sequence -> number of new tokens; the batch's rows are in this order.

        Raises:
            OutOfBlocksError: too few blocks are free; nothing was changed.
            RequestError: a count is not positive, or a sequence cannot take tokens now.
        """
        if not counts:
            raise RequestError("the batch is empty: name at least one sequence")
        for seq, count in counts.items():
            self._check(seq)
            if isinstance(count, bool) or not isinstance(count, int) or count < 1:
                raise RequestError(f"{seq.name}: {count!r} new tokens; a count must be a positive integer")
        self._reserve({seq: seq._inner.num_computed + count for seq, count in counts.items()})
        for seq, count in counts.items():
            seq._inner.num_scheduled = seq._inner.num_computed + count
            seq._generation += 1
        sequences = tuple(counts)
        batch = PagedBatch(
            sequences, tuple(counts.values()), describe(counts, self.block_size, self.device), self._layout.num_layers
        )
        for seq in sequences:
            seq._batch = batch
        return batch

    def write(self, layer: int, batch: PagedBatch, k: torch.Tensor, v: torch.Tensor) -> None:
        """Store one layer's keys and values, ``[batch.num_tokens, num_kv_heads, head_dim]`` each. Once every layer is
        written the tokens count in ``len()``.

        Raises:
            RequestError: a shape, dtype or device is wrong, or the batch is over.
        """
        shape = (batch.num_tokens, self._layout.num_kv_heads, self._layout.head_dim)
        self._check_layer(layer, batch)
        if layer not in batch._unwritten:
            raise RequestError(f"layer {layer} of this batch is written already: make a new batch for new tokens")
        for name, tensor in (("k", k), ("v", v)):
            self._check_tensor(name, tensor, shape)
        self._kernels.write_kv(k.contiguous(), v.contiguous(), self._kv, layer, batch.metadata.slots)
        batch._wrote(layer)

    def attend(self, layer: int, batch: PagedBatch, q: torch.Tensor, *, scale: float | None = None) -> torch.Tensor:
        """Causal attention of the batch's tokens over all tokens of their sequences, read straight from blocks.

        Args:
            layer: which layer's keys and values; it must have been written.
            q: ``[batch.num_tokens, num_heads, head_dim]``, ``num_heads`` a multiple of ``num_kv_heads``.
            scale: of the scores [``head_dim ** -0.5``].

        Returns:
            a new tensor of q's shape.

        Raises:
            RequestError: a shape, dtype or device is wrong, or the layer has not been written.
        """
        heads = self._layout.num_kv_heads
        self._check_layer(layer, batch)
        if layer in batch._unwritten:
            raise RequestError(f"layer {layer} of this batch has not been written: call write() first")
        if q.dim() != 3 or q.shape[1] % heads or not q.shape[1]:
            raise RequestError(f"q must be [tokens, heads, head_dim], heads a multiple of {heads}, not {list(q.shape)}")
        self._check_tensor("q", q, (batch.num_tokens, q.shape[1], self._layout.head_dim))
        scale = self._layout.head_dim**-0.5 if scale is None else scale
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        result: torch.Tensor = self._kernels.paged_attention(
            q.contiguous(), self._kv, layer, batch.metadata, scale, out, window=self.window
        )
        return result

    def gather(self, layer: int, seq: PagedSequence) -> tuple[torch.Tensor, torch.Tensor]:
        """Contiguous copies of a sequence's keys and values in one layer, ``[len(seq), num_kv_heads, head_dim]`` each:
        for checking; attention never does this. They are as they are stored: rounded, where that is int8. Rows whose
        blocks have left the window and were given back are NaN.

        Raises:
            RequestError: the sequence is swapped out or freed, or there is no such layer.
        """
        self._check_owner(seq)
        if seq.is_swapped:
            raise RequestError(f"{seq.name} is swapped out: swap it in first")
        self._check_layer_number(layer)
        table = seq.block_table
        blocks = torch.tensor(table, dtype=torch.int64, device=self.device)
        k, v = (read_kv(self._kv, blocks, layer, which).transpose(0, 1) for which in (0, 1))
        for rows in (k, v):
            rows[: table.count(HOLE) * self.block_size] = torch.nan
        return k[: len(seq)].to(self.dtype, copy=True), v[: len(seq)].to(self.dtype, copy=True)

    # -- what PagedSequence's methods do -----------------------------------------------------------------------

    def _append_tokens(self, seq: PagedSequence, count: int) -> None:
        self._check(seq)
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise RequestError(f"count must be a positive integer, not {count!r}")
        self._reserve({seq: seq._inner.num_computed + count})

    def _fork(self, parent: PagedSequence, name: str | None) -> PagedSequence:
        self._check(parent)
        child = self.sequence(name)
        self._memory.fork(parent._inner, child._inner)
        return child

    def _swap_out(self, seq: PagedSequence) -> None:
        self._check(seq)
        length = len(seq)
        self._memory.swap_out(seq._inner, length)
        self._swap_space.swap_out(self._pages, tuple(self._swaps.moves_out))
        self._swaps.end_step()
        seq._kept = length
        seq._generation += 1

    def _swap_in(self, seq: PagedSequence) -> None:
        self._check_owner(seq)
        if not seq.is_swapped:
            raise RequestError(f"{seq.name} is not swapped out")
        if seq._inner.swapped is not None:  # it had tokens
            self._memory.swap_in(seq._inner)
            moves = tuple((host, block) for block, host in self._swaps.moves_in.items())
            self._swap_space.swap_in(self._pages, moves)
            self._swaps.end_step()
        seq._kept = None
        seq._generation += 1

    def _free(self, seq: PagedSequence) -> None:
        self._check_owner(seq)
        if seq._batch is not None:
            raise RequestError(f"{seq.name}: a batch of it is half written: write every layer, or roll the batch back")
        self._swaps.discard(seq._inner)
        self._swaps.end_step()
        self._memory.free(seq._inner)
        del self._sequences[seq.name]
        seq._generation += 1

    # -- inside ------------------------------------------------------------------------------------------------

    def _reserve(self, targets: Mapping[PagedSequence, int]) -> None:
        """Room for every sequence up to its position, copying shared tails; all or nothing."""
        refs = self._memory.pool.refs
        left: dict[int, int] = {}
        need = 0
        for seq, upto in targets.items():
            inner, blocks = seq._inner, seq._inner.tables[0].blocks
            need += max(0, -(-upto // self.block_size) - len(blocks))
            i, offset = divmod(inner.num_scheduled, self.block_size)
            if offset:  # of n that share a tail, n - 1 copy it; the last one has it to itself
                sharers = left.get(blocks[i], refs[blocks[i]])
                need += sharers > 1
                left[blocks[i]] = sharers - 1
        free = self._memory.num_free + self._given_back(targets)
        if need > free:
            raise OutOfBlocksError(
                f"{need} blocks are needed, {free} of {self._memory.pool.num_blocks} are free: "
                "free or swap out a sequence, or make the cache larger"
            )
        for seq in targets:
            self._memory.give_back(seq._inner)
        for seq, upto in targets.items():
            self._memory.reserve(seq._inner, upto)
        copies = self._memory.copies
        if copies:
            _, sources, places = zip(*copies, strict=True)
            self._kernels.copy_blocks(
                self._pages,
                torch.tensor(sources, dtype=torch.int64, device=self.device),
                torch.tensor(places, dtype=torch.int64, device=self.device),
            )
            copies.clear()

    def _given_back(self, targets: Mapping[PagedSequence, int]) -> int:
        """Blocks that become free when those of ``targets`` that have left the window are given back. That waits until
        new tokens are taken, because until then the last batch may still attend to them."""
        leaving = Counter(
            seq._inner.tables[group].blocks[i]
            for seq in targets
            for group in self._memory.layout.windowed
            for i in self._memory.leaving(seq._inner, group)
        )
        return sum(count == self._memory.pool.refs[block] for block, count in leaving.items())

    def _check_owner(self, seq: PagedSequence) -> None:
        if self._sequences.get(seq.name) is not seq:
            raise RequestError(f"{seq.name} is not a live sequence of this cache: it was freed, or belongs to another")

    def _check(self, seq: PagedSequence) -> None:
        self._check_owner(seq)
        if seq.is_swapped:
            raise RequestError(f"{seq.name} is swapped out: swap it in first")
        if seq._batch is not None:
            raise RequestError(f"{seq.name}: a batch of it is half written: write every layer, or roll the batch back")

    def _check_layer(self, layer: int, batch: PagedBatch) -> None:
        self._check_layer_number(layer)
        if any(
            seq._generation != generation for seq, generation in zip(batch.sequences, batch.generations, strict=True)
        ):
            raise RequestError(
                "the batch is over: a sequence of it was freed, swapped, rolled back or given new tokens"
            )

    def _check_layer_number(self, layer: int) -> None:
        if isinstance(layer, bool) or not isinstance(layer, int) or not 0 <= layer < self._layout.num_layers:
            raise RequestError(f"layer {layer!r} does not exist: use 0 to {self._layout.num_layers - 1}")

    def _check_tensor(self, name: str, tensor: torch.Tensor, shape: tuple[int, ...]) -> None:
        if tuple(tensor.shape) != shape:
            raise RequestError(f"{name} must have the shape {list(shape)}, not {list(tensor.shape)}")
        if tensor.dtype != self.dtype or tensor.device.type != self.device.type:
            raise RequestError(f"{name} must be {self.dtype} on {self.device}, not {tensor.dtype} on {tensor.device}")
