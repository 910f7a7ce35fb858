"""The contiguous baseline beside a plain array of owners."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.errors import ConfigError, OutOfBlocksError
from octavo.memory.contiguous import RULES, ContiguousAllocator


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(st.integers(-20, 20).filter(bool)), st.integers(1, 70), st.booleans())
def test_it_behaves_as_first_fit_over_an_array(calls: list[int], capacity: int, buddy: bool) -> None:
    allocator = ContiguousAllocator(capacity, buddy=buddy)
    owner = [0] * capacity
    held: list[tuple[int, int]] = []
    for call in calls:
        if call > 0:
            size = 1 << (call - 1).bit_length() if buddy else call
            step = size if buddy else 1
            fits = [at for at in range(0, capacity - size + 1, step) if not any(owner[at : at + size])]
            if not fits:
                with pytest.raises(OutOfBlocksError):
                    allocator.allocate(call)
                continue
            assert allocator.allocate(call) == fits[0]
            owner[fits[0] : fits[0] + size] = [1] * size
            held.append((fits[0], size))
        elif held:
            at, size = held.pop(call % len(held))
            allocator.release(at)
            owner[at : at + size] = [0] * size
        assert allocator.num_free == owner.count(0)
        assert allocator.holes == [len(run) for run in "".join(map(str, owner)).split("1") if run]


def test_rules_of_how_much_to_set_aside() -> None:
    assert {name: rule(100, 60, 2048) for name, rule in RULES.items()} == {
        "reserve-max": 2048,
        "power-of-two": 256,
        "oracle": 160,
    }
    assert RULES["power-of-two"](1000, 500, 2000) == 2000
    assert RULES["power-of-two"](128, 128, 2048) == 256


def test_nonsense_is_refused() -> None:
    for capacity in (0, -3, 2.0, True):
        with pytest.raises(ConfigError, match="capacity"):
            ContiguousAllocator(capacity)  # type: ignore[arg-type]
    allocator = ContiguousAllocator(4)
    for size in (0, -1, 1.5):
        with pytest.raises(ConfigError, match="size"):
            allocator.allocate(size)  # type: ignore[arg-type]
    with pytest.raises(KeyError):
        allocator.release(0)
