"""The picture of the pool."""

from __future__ import annotations

from octavo.cli.block_map import CACHED, FREE, SHARED, BlockMap, letter, summary
from octavo.memory import MemorySnapshot


def snapshot(owner: list[tuple[int, ...]], cached: set[int]) -> MemorySnapshot:
    used = sum(1 for each in owner if each)
    return MemorySnapshot(
        block_size=16,
        owner=owner,
        cached=frozenset(cached),
        num_used=used,
        num_shared=sum(1 for each in owner if len(each) > 1),
        num_cached=len(cached),
        num_free=len(owner) - used - len(cached),
        filled_slots=used * 12,
    )


def test_each_block_shows_whose_it_is() -> None:
    picture = BlockMap(snapshot([(7,), (7, 8), (8,), (), ()], {3}), {7: 0, 8: 1}, columns=6)
    assert picture.lines() == [f"A {SHARED} B", f"{CACHED} {FREE}"]
    assert picture.text().plain == f"A {SHARED} B \n{CACHED} {FREE} "
    legend = picture.legend().plain
    for words in ("held 3", "shared 1", "cached 1", "free 1"):
        assert words in legend
    assert summary(picture.snapshot) == "3 of 5 blocks held (1 shared), 1 cached, 1 free, utilisation 75.0%"


def test_colours_tell_requests_apart() -> None:
    text = BlockMap(snapshot([(1,), (2,)], set()), {1: 0, 2: 1}).text()
    styles = [str(span.style) for span in text.spans]
    assert len(set(styles)) == 2
    assert [letter(place) for place in (0, 25, 26)] == ["A", "Z", "A"]


def test_a_large_pool_is_cut_to_the_rows_that_fit() -> None:
    picture = BlockMap(snapshot([()] * 10_000, set()), {}, columns=20, rows=3)
    assert picture.lines()[-1] == "... and 9,970 more"
    assert len(picture.lines()) == 4
    assert picture.text().plain.count(FREE) == 30
