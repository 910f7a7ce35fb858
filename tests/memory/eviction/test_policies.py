"""Each policy beside the plainest model of it: lists, sorted anew for every victim."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.memory.eviction import EVICTIONS, Eviction


@dataclass
class Known:
    """What a slow model remembers of a filed block."""

    content: int
    depth: int
    filed: int
    used: int
    uses: int = 1
    rests: bool = False


class SlowPolicy(ABC):
    """Every event is written down; ``victim`` looks through all of it."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.clock = 0
        self.known: dict[int, Known] = {}

    def file(self, block: int, content: int, depth: int) -> None:
        self.clock += 1
        self.known[block] = Known(content, depth, self.clock, self.clock)

    def touch(self, block: int) -> None:
        self.clock += 1
        self.known[block].used = self.clock
        self.known[block].uses += 1

    def rest(self, block: int) -> None:
        self.known[block].rests = True

    def wake(self, block: int) -> None:
        self.known[block].rests = False

    def drop(self, block: int) -> None:
        del self.known[block]

    def resting(self) -> list[int]:
        return [block for block, known in self.known.items() if known.rests]

    @abstractmethod
    def victim(self) -> int:
        """Which of the resting blocks goes."""


class SlowLRU(SlowPolicy):
    def victim(self) -> int:
        return min(self.resting(), key=lambda block: self.known[block].used)


class SlowFIFO(SlowPolicy):
    def victim(self) -> int:
        return min(self.resting(), key=lambda block: self.known[block].filed)


class SlowLFU(SlowPolicy):
    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self.dropped: list[tuple[int, int]] = []  # (content, uses), the oldest first

    def file(self, block: int, content: int, depth: int) -> None:
        super().file(block, content, depth)
        for entry in [entry for entry in self.dropped if entry[0] == content]:
            self.known[block].uses += entry[1]
            self.dropped.remove(entry)

    def drop(self, block: int) -> None:
        self.dropped.append((self.known[block].content, self.known[block].uses))
        self.dropped = self.dropped[-16 * self.capacity :]
        super().drop(block)

    def victim(self) -> int:
        return min(self.resting(), key=lambda block: (self.known[block].uses, self.known[block].used))


class SlowARC(SlowPolicy):
    """Megiddo and Modha's rules with lists; ``once`` and ``again`` are found by looking."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self.target = 0.0
        self.ghosts: list[tuple[int, str]] = []  # (content, where from), the oldest first
        self.again: set[int] = set()

    def _ghosts(self, kind: str) -> list[int]:
        return [content for content, each in self.ghosts if each == kind]

    def file(self, block: int, content: int, depth: int) -> None:
        super().file(block, content, depth)
        once, again = len(self._ghosts("once")), len(self._ghosts("again"))
        for kind in ("once", "again"):
            if (content, kind) in self.ghosts:
                step = max(1.0, again / once) if kind == "once" else -max(1.0, once / again)
                self.target = min(max(self.target + step, 0.0), float(self.capacity))
                self.ghosts.remove((content, kind))
                self.again.add(block)
                return

    def touch(self, block: int) -> None:
        super().touch(block)
        self.again.add(block)

    def drop(self, block: int) -> None:
        kind = "again" if block in self.again else "once"
        self.ghosts.append((self.known[block].content, kind))
        super().drop(block)
        self.again.discard(block)
        while (once := self._ghosts("once")) and len(once) + len(self.known) - len(self.again) > self.capacity:
            self.ghosts.remove((once[0], "once"))
        while (again := self._ghosts("again")) and len(self.ghosts) + len(self.known) > 2 * self.capacity:
            self.ghosts.remove((again[0], "again"))

    def victim(self) -> int:
        used_once = [block for block in self.resting() if block not in self.again]
        used_again = [block for block in self.resting() if block in self.again]
        if not used_again or (used_once and len(self.known) - len(self.again) > self.target):
            candidates = used_once
        else:
            candidates = used_again
        return min(candidates, key=lambda block: self.known[block].used)


class SlowPrefix(SlowPolicy):
    """The textbook form: every trial and every interval is kept, and worth is worked out from them."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self.trials: list[tuple[int, int]] = []  # (uses, depth class) of whatever was left alone, once it is known ..
        self.returns: list[tuple[int, int]] = []  # .. how that ended; and of what came back
        self.intervals: list[int] = []
        self.dropped: list[tuple[int, Known]] = []
        self.keys: dict[int, float] = {}

    def kind(self, known: Known) -> tuple[int, int]:
        return min(known.uses, 9), min(math.ceil(math.log2(known.depth + 1)), 8)

    def came_back(self, known: Known) -> None:
        self.returns.append(self.kind(known))
        self.intervals.append(self.clock - known.used)

    def value(self, block: int) -> None:
        known = self.known[block]
        kind = self.kind(known)
        chance = (self.returns.count(kind) + 0.5) / (self.trials.count(kind) + 1)
        scale = float(self.capacity)
        for interval in self.intervals:
            scale = scale * (1 - 1 / 2000) + interval / 2000
        self.keys[block] = self.clock + 1.5 * scale * math.log(chance * (1 + known.depth / 2048))

    def file(self, block: int, content: int, depth: int) -> None:
        super().file(block, content, depth)
        for entry in [entry for entry in self.dropped if entry[0] == content]:
            self.came_back(entry[1])
            self.known[block].uses += entry[1].uses
            self.dropped.remove(entry)
        self.value(block)

    def touch(self, block: int) -> None:
        known = self.known[block]
        before = replace(known)
        super().touch(block)
        self.trials.append(self.kind(before))
        self.came_back(before)
        self.value(block)

    def drop(self, block: int) -> None:
        known = self.known[block]
        self.trials.append(self.kind(known))
        self.dropped.append((known.content, known))
        self.dropped = self.dropped[-8 * self.capacity :]
        super().drop(block)

    def victim(self) -> int:
        return min(self.resting(), key=lambda block: (round(self.keys[block], 6), block))


MODELS: dict[str, type[SlowPolicy]] = {
    "lru": SlowLRU,
    "fifo": SlowFIFO,
    "lfu": SlowLFU,
    "arc": SlowARC,
    "prefix": SlowPrefix,
}


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.integers(1, 6), st.lists(st.tuples(st.sampled_from("ftrwdvvv"), st.integers(0, 19)), max_size=150))
def test_it_does_what_the_plain_model_does(name: str, capacity: int, actions: list[tuple[str, int]]) -> None:
    policy, model = EVICTIONS[name](capacity), MODELS[name](capacity)
    for action, which in actions:
        block = which % 10
        known = model.known.get(block)
        if action == "f":  # content comes back after it was dropped, in whatever block
            if which not in {each.content for each in model.known.values()}:
                free = next(block for block in range(20) if block not in model.known)
                both(policy, model, "file", free, which, which * which)
                both(policy, model, "rest", free)
        elif action == "t" and known:
            both(policy, model, "touch", block)
        elif action == "r" and known and not known.rests:
            both(policy, model, "rest", block)
        elif action == "w" and known and known.rests:
            both(policy, model, "wake", block)
        elif action == "d" and known:
            both(policy, model, "drop", block)
        elif action == "v":
            if model.resting():
                victim = model.victim()
                assert policy.victim() == victim
                assert policy.rests(victim)
                assert policy.victim() == victim  # it stays until it is dropped
                both(policy, model, "drop", victim)
            else:
                with pytest.raises(LookupError, match="nothing rests"):
                    policy.victim()


def both(policy: Eviction, model: SlowPolicy, event: str, *args: int) -> None:
    getattr(policy, event)(*args)
    getattr(model, event)(*args)


def test_every_policy_has_its_model() -> None:
    assert set(MODELS) == set(EVICTIONS)
