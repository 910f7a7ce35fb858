"""The cache alone: how often a prefix cache of so many blocks would have hit, under which eviction policy.

No scheduler, no time: requests are atomic. A request's hits are the leading contents of its prompt that are resident
when it arrives; then all of its contents become resident, the prompt's end touched first and its beginning last, and
then blocks are evicted until the cache fits its capacity again. A block is one entry of ``hash_ids``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from octavo.errors import ConfigError
from octavo.memory.eviction import EVICTIONS, Eviction
from octavo.simulator.belady import Belady
from octavo.simulator.trace import Trace


@dataclass(frozen=True, slots=True)
class CacheResult:
    """What a policy made of a capacity."""

    eviction: str
    capacity: int | None  #: blocks; None is a cache that never evicts
    num_blocks: int  #: asked for
    num_hits: int
    num_tokens: int  #: prompt tokens asked for
    num_hit_tokens: int
    num_evicted: int

    @property
    def hit_rate(self) -> float:
        """Hits over blocks."""
        return self.num_hits / self.num_blocks if self.num_blocks else 0.0

    @property
    def token_hit_rate(self) -> float:
        """Tokens of hits over tokens."""
        return self.num_hit_tokens / self.num_tokens if self.num_tokens else 0.0


LAB_POLICIES = (*EVICTIONS, "belady")
"""The policies of the laboratory: the engine's, and the one that only a laboratory can have."""


def run_cache(trace: Trace, eviction: str = "lru", capacity: int | None = None) -> CacheResult:
    """Play a trace's prompts through a cache.

    Args:
        trace: one whose requests have contents.
        eviction: one of :data:`LAB_POLICIES`.
        capacity: blocks that the cache holds [it never evicts].

    Raises:
        ConfigError: the policy is unknown, the capacity not positive, or the trace says nothing of contents.
    """
    if eviction not in LAB_POLICIES:
        raise ConfigError(f"eviction={eviction!r} is unknown: use one of {', '.join(LAB_POLICIES)}")
    if capacity is not None and capacity < 1:
        raise ConfigError(f"capacity={capacity} must be at least 1 block")
    if not trace.num_contents:
        raise ConfigError(f"{trace.name} has no hash_ids, so nothing is known of what its prompts have in common")
    lab = CacheLab(trace, eviction, capacity)
    for request in trace.requests:
        lab.arrive(request.contents, request.num_prompt)
    return CacheResult(
        eviction,
        capacity,
        sum(len(request.contents) for request in trace.requests),
        lab.num_hits,
        sum(request.num_prompt for request in trace.requests),
        lab.num_hit_tokens,
        lab.num_evicted,
    )


class CacheLab:
    """A cache of whole contents, which are numbered densely and serve as the policy's blocks.

    The engine's policies are offered only blocks that no resident block follows, as by the memory manager: no
    beginning is evicted before what continues it. Belady chooses among all: his next uses say the same, but for the
    order within one request.
    """

    def __init__(self, trace: Trace, eviction: str, capacity: int | None) -> None:
        self.capacity = capacity
        self.num_hits = self.num_hit_tokens = self.num_evicted = self.num_resident = 0
        self.resident = bytearray(trace.num_contents)
        self.policy = _policy(trace, eviction, trace.num_contents if capacity is None else capacity)
        self._leaves_only = eviction != "belady"
        self._piece = trace.piece
        self._children = [0] * trace.num_contents  # resident ones
        self._parent = [-1] * trace.num_contents

    def arrive(self, contents: Sequence[int], num_prompt: int) -> int:
        """A request comes: count its hits, make it resident, evict down to the capacity. Returns the hits."""
        resident = self.resident
        hits = next((place for place, content in enumerate(contents) if not resident[content]), len(contents))
        self.num_hits += hits
        self.num_hit_tokens += min(hits * self._piece, num_prompt)
        for depth in range(len(contents) - 1, -1, -1):
            if resident[contents[depth]]:
                self.policy.touch(contents[depth])
            else:
                self._take_in(contents, depth)
        if self.capacity is not None:
            while self.num_resident > self.capacity:
                self._evict()
        return hits

    def _take_in(self, contents: Sequence[int], depth: int) -> None:
        content, policy = contents[depth], self.policy
        policy.file(content, content, depth)
        self.resident[content] = 1
        self.num_resident += 1
        if not self._leaves_only or not self._children[content]:
            policy.rest(content)
        if not depth:
            return
        parent = self._parent[content] = contents[depth - 1]
        self._children[parent] += 1
        if self._leaves_only and self._children[parent] == 1 and self.resident[parent]:
            policy.wake(parent)

    def _evict(self) -> None:
        content = self.policy.victim()
        self.policy.drop(content)
        self.resident[content] = 0
        self.num_resident -= 1
        self.num_evicted += 1
        parent = self._parent[content]
        if parent >= 0:
            self._children[parent] -= 1
            if self._leaves_only and not self._children[parent]:
                self.policy.rest(parent)


def _policy(trace: Trace, eviction: str, capacity: int) -> Eviction:
    if eviction == "belady":
        return Belady(capacity, [request.contents for request in trace.requests], trace.num_contents)
    return EVICTIONS[eviction](capacity)
