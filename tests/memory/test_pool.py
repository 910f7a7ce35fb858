"""The block pool beside the plainest model of it: a list."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.errors import OutOfBlocksError
from octavo.memory import BlockPool


class ListPool:
    """What the pool must do, with a plain list for the free blocks."""

    def __init__(self, size: int) -> None:
        self.free = list(range(size))
        self.refs = [0] * size
        self.cached = [False] * size

    def allocate(self) -> int:
        block = self.free.pop(0)
        self.refs[block] = 1
        return block

    def share(self, block: int) -> None:
        if not self.refs[block]:
            self.free.remove(block)
        self.refs[block] += 1

    def release(self, block: int) -> None:
        self.refs[block] -= 1
        if not self.refs[block]:
            self.free.insert(len(self.free) if self.cached[block] else 0, block)

    def forget(self, block: int) -> None:
        self.cached[block] = False
        if not self.refs[block]:
            self.free.remove(block)
            self.free.insert(0, block)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.integers(1, 9), st.lists(st.tuples(st.sampled_from("asrcf"), st.integers(0, 8)), max_size=120))
def test_it_does_what_a_list_would(size: int, actions: list[tuple[str, int]]) -> None:
    pool, model = BlockPool(size), ListPool(size)
    for action, which in actions:
        block = which % size
        if action == "a":
            if not model.free:
                with pytest.raises(OutOfBlocksError, match=f"all {size} blocks"):
                    pool.allocate()
            else:
                taken = pool.allocate()
                assert taken == model.allocate()
                if pool.node[taken]:  # as the manager does with what is evicted
                    pool.node[taken] = 0
                    model.cached[taken] = False
        elif action == "s" and (model.refs[block] or model.cached[block]):
            pool.share(block)
            model.share(block)
        elif action == "r" and model.refs[block]:
            pool.release(block)
            model.release(block)
        elif action == "r":
            with pytest.raises(RuntimeError, match="released twice"):
                pool.release(block)
        elif action == "c" and model.refs[block]:
            pool.node[block] = 7
            model.cached[block] = True
        elif action == "f" and model.cached[block]:
            pool.forget(block)
            model.forget(block)
        assert pool.free_blocks() == model.free
        assert pool.num_free == len(model.free)
        assert pool.refs == model.refs


def test_worthless_blocks_go_first_then_the_least_recently_freed() -> None:
    pool = BlockPool(4)
    blocks = [pool.allocate() for _ in range(4)]
    pool.node[blocks[1]], pool.node[blocks[3]] = 11, 33
    for block in blocks:
        pool.release(block)
    assert pool.free_blocks() == [2, 0, 1, 3]
    pool.share(1)  # wanted again: out of the middle
    assert pool.free_blocks() == [2, 0, 3]
    pool.release(1)  # and now the most recently used
    assert pool.free_blocks() == [2, 0, 3, 1]
    pool.forget(1)
    assert pool.free_blocks() == [1, 2, 0, 3]


@pytest.mark.parametrize("operation", ["allocate and release", "share from the middle and release"])
def test_the_work_does_not_grow_with_the_pool(operation: str) -> None:
    """Counted in list accesses, so that no clock is needed."""

    class Counting(list):  # type: ignore[type-arg]
        accesses = 0

        def __getitem__(self, key):  # type: ignore[no-untyped-def]
            Counting.accesses += 1
            return super().__getitem__(key)

        def __setitem__(self, key, value):  # type: ignore[no-untyped-def]
            Counting.accesses += 1
            super().__setitem__(key, value)

    def work(size: int) -> int:
        pool = BlockPool(size)
        for block in range(size):
            pool.node[block] = 1
        pool._next, pool._previous, pool.refs = Counting(pool._next), Counting(pool._previous), Counting(pool.refs)
        Counting.accesses = 0
        if operation == "allocate and release":
            pool.release(pool.allocate())
        else:
            pool.share(size // 2)
            pool.release(size // 2)
        return Counting.accesses

    assert work(8) == work(8000) < 30
