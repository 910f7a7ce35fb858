"""How many blocks the pool gets, and the context that can be served from them: arithmetic, nothing else.

Paged memory has no reservation per sequence (Kwon et al., PagedAttention, 2023), so the pool is simply what is left of
the memory after the weights, never more than the largest batch could use.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from octavo.config import EngineConfig, host_blocks
from octavo.errors import ConfigError
from octavo.plan import LayerGroup


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What the memory is used for. Sizes are in bytes."""

    available_bytes: int  #: free before the weights are loaded
    weights_bytes: int
    page_bytes: int  #: one block of one layer group
    block_size: int  #: tokens a block holds
    groups: tuple[LayerGroup, ...]  #: each takes blocks of its own
    stride: int  #: the most tokens of a sequence that are planned and not yet committed
    num_blocks: int
    max_model_len: int  #: tokens of context served
    num_host_blocks: int = 0  #: pages of swap space
    working_bytes: int = 0  #: on a GPU: what the largest step, graphs and buffers take beside weights and pool
    notes: tuple[str, ...] = ()  #: what was cut, and why; one line each

    @property
    def kv_bytes(self) -> int:
        """Size of the whole pool."""
        return self.num_blocks * self.page_bytes

    @property
    def swap_bytes(self) -> int:
        """Size of the swap space."""
        return self.num_host_blocks * self.page_bytes

    @property
    def num_groups(self) -> int:
        """Blocks that ``block_size`` tokens of one sequence take before any has left a window."""
        return len(self.groups)

    @property
    def tokens(self) -> int:
        """Tokens that the pool holds, all sequences together: in short ones, of which nothing has left a window, or in
        such as fill the served context, whichever is more."""
        short = self.num_blocks // self.num_groups * self.block_size
        return max(short, self.concurrent_at_full_context * self.max_model_len)

    def concurrent(self, tokens: int) -> int:
        """How many sequences of ``tokens`` tokens the pool holds at once (``max_num_seqs`` is another limit)."""
        return self.num_blocks // blocks_for(tokens, self.block_size, self.groups, self.stride)

    @property
    def concurrent_at_full_context(self) -> int:
        """How many sequences of the whole served context the pool holds at once."""
        return self.concurrent(self.max_model_len)


def blocks_for(tokens: int, block_size: int, groups: Sequence[LayerGroup], stride: int) -> int:
    """The most blocks that one sequence of ``tokens`` tokens holds at once; a windowed group gives back what has left
    its window, so that it needs no more from some length on."""
    return sum(group.blocks_for(tokens, block_size, stride) for group in groups)


def longest_context(num_blocks: int, upto: int, block_size: int, groups: Sequence[LayerGroup], stride: int) -> int:
    """Tokens that one sequence can have if the whole pool is its own, at most ``upto``."""
    counts = range(1, -(-upto // block_size) + 1)
    fitting = bisect_right(counts, num_blocks, key=lambda n: blocks_for(n * block_size, block_size, groups, stride))
    return min(upto, fitting * block_size)


def plan_memory(
    *,
    available_bytes: int,
    weights_bytes: int,
    page_bytes: int,
    model_max_len: int,
    config: EngineConfig,
    groups: Sequence[LayerGroup] = (LayerGroup(1),),
) -> MemoryPlan:
    """Choose ``num_blocks`` and the served context.

    Without ``config.num_blocks`` the pool takes ``memory_utilization`` of what is free after the weights, but no more
    than ``max_num_seqs`` sequences of full context could use. The served context is ``config.max_model_len`` or else
    the model's, cut (with a note) to what the pool holds for one sequence alone. Swap space is set aside before the
    pool: on a CPU both are in the same memory.

    Args:
        available_bytes: memory free before the weights are loaded.
        weights_bytes: size of the weights as they will lie in memory.
        page_bytes: size of one block of one group.
        model_max_len: the longest context the model was made for, in tokens.
        config: block_size, num_blocks, memory_utilization, max_num_seqs, max_num_batched_tokens, max_model_len, depth
            and swap_space are read.
        groups: the model's layer groups, all drawing on the one pool.

    Raises:
        ConfigError: the weights, or the swap space beside them, do not fit; an explicit ``num_blocks`` is larger than
            memory or smaller than one block for each group; an explicit ``max_model_len`` exceeds the model's, or what
            the pool holds.
    """
    wanted_context(config, model_max_len)
    free = available_bytes - weights_bytes
    if free < page_bytes * len(groups):
        raise ConfigError(
            f"the weights take {size_in_words(weights_bytes)} and {size_in_words(available_bytes)} of memory is free, "
            "which leaves no room for one KV block: free some memory, or choose a smaller model or dtype"
        )
    num_host_blocks = host_blocks(config.swap_space, page_bytes)
    free -= num_host_blocks * page_bytes
    if free < page_bytes * len(groups):
        raise ConfigError(
            f"swap_space={config.swap_space} GiB leaves no room for the KV memory itself: "
            f"{size_in_words(available_bytes - weights_bytes)} is free after the weights; lower it"
        )
    pool = fit_pool(
        Room(
            free,
            int(free * config.memory_utilization),
            after="the weights and the swap space" if num_host_blocks else "the weights",
            remedy="raise memory_utilization or free some memory",
        ),
        page_bytes=page_bytes,
        model_max_len=model_max_len,
        config=config,
        groups=groups,
    )
    return MemoryPlan(
        available_bytes=available_bytes,
        weights_bytes=weights_bytes,
        page_bytes=page_bytes,
        block_size=config.block_size,
        groups=tuple(groups),
        stride=stride_of(config),
        num_blocks=pool.num_blocks,
        max_model_len=pool.max_model_len,
        num_host_blocks=num_host_blocks,
        notes=pool.notes,
    )


@dataclass(frozen=True, slots=True)
class Room:
    """Memory that a pool can be made in, in bytes, and how an error speaks of it."""

    free_bytes: int  #: an explicit ``num_blocks`` must fit in here
    usual_bytes: int  #: of it, what a pool takes by itself
    after: str  #: beside what this is free
    remedy: str  #: what makes more of it


@dataclass(frozen=True, slots=True)
class Pool:
    """A pool that fits, and what it serves."""

    num_blocks: int
    max_model_len: int
    notes: tuple[str, ...]


def stride_of(config: EngineConfig) -> int:
    """The most tokens of a sequence that are planned and not yet committed (a ``depth`` of None counts as 0)."""
    return config.max_num_batched_tokens * ((config.depth or 0) + 1)


def wanted_context(config: EngineConfig, model_max_len: int) -> int:
    """Tokens of context to serve if memory allows.

    Raises:
        ConfigError: more than the model's own are asked for.
    """
    if config.max_model_len is None:
        return model_max_len
    if config.max_model_len > model_max_len:
        raise ConfigError(
            f"max_model_len={config.max_model_len} exceeds the model's own {model_max_len} positions: lower it, or "
            "leave it out"
        )
    return config.max_model_len


def fit_pool(
    room: Room, *, page_bytes: int, model_max_len: int, config: EngineConfig, groups: Sequence[LayerGroup]
) -> Pool:
    """Choose the number of blocks for a room that holds one block for each group at least, and the context served from
    them.

    Raises:
        ConfigError: an explicit ``num_blocks`` or ``max_model_len`` does not go with the room.
    """
    size, per_step, stride = config.block_size, len(groups), stride_of(config)
    wanted = wanted_context(config, model_max_len)
    notes: list[str] = []
    if config.num_blocks is not None:
        num_blocks = config.num_blocks
        if num_blocks * page_bytes > room.free_bytes:
            raise ConfigError(
                f"num_blocks={num_blocks} takes {size_in_words(num_blocks * page_bytes)} and "
                f"{size_in_words(room.free_bytes)} is free after {room.after}: lower it to "
                f"{room.free_bytes // page_bytes} or less, or leave it out"
            )
        if num_blocks < per_step:
            raise ConfigError(f"num_blocks={num_blocks} is less than one block for each of {per_step} layer groups")
    else:
        useful = config.max_num_seqs * blocks_for(wanted, size, groups, stride)
        num_blocks = max(min(room.usual_bytes // page_bytes, useful), per_step)
    served = longest_context(num_blocks, wanted, size, groups, stride)
    if served < wanted:
        if config.max_model_len is not None:
            need = blocks_for(wanted, size, groups, stride)
            remedy = (
                f"raise num_blocks to {need}"
                if config.num_blocks is not None
                else f"{size_in_words(need * page_bytes)} is needed: {room.remedy}"
            )
            raise ConfigError(
                f"max_model_len={wanted} cannot be served: the pool of {num_blocks} blocks holds {served} tokens; "
                f"{remedy}, or lower max_model_len"
            )
        notes.append(f"context cut from {wanted} to {served} tokens: the pool holds {num_blocks} blocks of {size}")
    if served < 2:
        raise ConfigError(
            f"the pool of {num_blocks} blocks holds {served} token, too few to continue a prompt: raise num_blocks"
        )
    return Pool(num_blocks, served, tuple(notes))


def size_in_words(count: int) -> str:
    """Bytes in the unit that suits them."""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if abs(count) >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} bytes"
