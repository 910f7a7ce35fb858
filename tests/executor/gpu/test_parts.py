from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from octavo.executor.gpu.parts import NO_MEMORY, NothingRead, halves, joined
from octavo.plan import Chunk, ChunkResult, Sample, Want


def chunk(slot: int, count: int, drafts: int = 0, start: int = 5, want: Want = Want.SAMPLE) -> Chunk:
    tokens = tuple(range(100 * slot, 100 * slot + count))
    draws = (slot,) if want is Want.SAMPLE else ()
    outputs_from = start + count - 1 - drafts
    return Chunk(slot, slot, start, count, tokens, (1, 0), ((7, 8), ()), outputs_from, want, draws, drafts)


def pieces(chunks: tuple[Chunk, ...]) -> list[Chunk]:
    """All the way down."""
    divided = halves(chunks)
    return [*chunks] if divided is None else [*pieces(divided[0]), *pieces(divided[1])]


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 6)), min_size=1, max_size=8))
def test_the_parts_are_the_whole(shapes: list[tuple[int, int]]) -> None:
    chunks = tuple(chunk(slot, count, min(drafts, count - 1)) for slot, (count, drafts) in enumerate(shapes))
    found = pieces(chunks)
    for whole in chunks:
        own = [part for part in found if part.slot == whole.slot]
        assert sum((part.tokens for part in own), ()) == whole.tokens
        assert [part.start for part in own] == [whole.start + sum(p.count for p in own[:i]) for i in range(len(own))]
        assert [part.count for part in own[:-1]] == [1] * (len(own) - 1)
        assert own[-1].count == 1 + whole.drafts  # guesses stay with the token that they follow
        assert [part.want for part in own] == [Want.NONE] * (len(own) - 1) + [Want.SAMPLE]
        assert sum((part.draws for part in own), ()) == whole.draws
        assert sum((part.blocks[0] for part in own), ()) == (7, 8)
        assert all(part.blocks_from[0] == 3 for part in own[1:])
        assert all(min(part.start, part.outputs_from) == part.start for part in own)
    if len(chunks) > 1:
        first, second = halves(chunks) or ((), ())
        total = sum(each.count for each in chunks)
        if max(each.count for each in chunks) * 4 <= total:
            assert min(sum(each.count for each in half) for half in (first, second)) >= total // 4


def test_a_prompts_scores_are_split_where_the_prompt_is() -> None:
    whole = chunk(0, 10)._replace(outputs_from=7)  # of positions 5 to 14
    first, second = (half[0] for half in halves((whole,)) or ())
    assert (first.start, first.count, first.outputs_from) == (5, 5, 7)
    assert (second.start, second.count, second.outputs_from) == (10, 5, 10)
    late = whole._replace(outputs_from=12)
    first, second = (half[0] for half in halves((late,)) or ())
    assert (first.outputs_from, second.outputs_from) == (10, 12)  # nothing of the first is read


def test_results_are_joined_by_chunk() -> None:
    rng = random.Random(0)
    chunks = (chunk(3, 4), chunk(1, 1), chunk(2, 8))
    found = pieces(chunks)
    results = [
        ChunkResult(samples=(Sample(part.slot),) if part.draws else (), prompt=(Sample(rng.randrange(9)),))
        for part in found
    ]
    made = joined(found, results)
    assert [result.samples for result in made] == [(Sample(3),), (Sample(1),), (Sample(2),)]
    assert [len(result.prompt) for result in made] == [4, 1, 8]
    assert [sample for result in made for sample in result.prompt] == [r.prompt[0] for r in results]
    results[1] = NothingRead(1).results([])[0]
    assert [result.error for result in joined(found, results)] == [NO_MEMORY, None, None]
