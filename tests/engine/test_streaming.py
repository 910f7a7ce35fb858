"""Streams: their pieces join to the whole text, whatever else the engine does meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest
from engine_case import assert_clean, finish, oracle_engine

from octavo import LLM, LLMEngine, SamplingParams
from octavo.errors import RequestError

DRAWN = SamplingParams(seed=9, max_tokens=40, ignore_eos=True)


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("seed", range(6))
def test_the_pieces_join_to_the_text(tiny_llama: Path, seed: int, depth: int) -> None:
    """Random byte tokens make broken and split characters, which must never be shown by halves."""
    with oracle_engine(tiny_llama, depth=depth) as engine:
        params = SamplingParams(seed=seed, max_tokens=60, stop=["zq", " the"] if seed % 2 else None)
        whole = engine.generate(f"{seed} king", params)[0]
        engine.reset_prefix_cache()
        deltas = list(LLM.over(engine).stream(f"{seed} king", params))
        assert "".join(delta.text for delta in deltas) == whole.text
        assert [token for delta in deltas for token in delta.token_ids] == whole.outputs[0].token_ids
        assert [delta.finished for delta in deltas] == [False] * (len(deltas) - 1) + [True]
        assert deltas[-1].finish_reason == whole.outputs[0].finish_reason
        assert deltas[-1].output.finished
        assert_clean(engine)


def test_siblings_stream_side_by_side(engine: LLMEngine) -> None:
    params = SamplingParams(n=3, seed=9, max_tokens=15, ignore_eos=True, stop=["e"])
    whole = engine.generate("A king", params)[0]
    deltas = list(LLM.over(engine).stream("A king", params))
    for each in whole.outputs:
        own = [delta for delta in deltas if delta.index == each.index]
        assert "".join(delta.text for delta in own) == each.text
        assert [token for delta in own for token in delta.token_ids] == each.token_ids
        assert [delta.finished for delta in own] == [False] * (len(own) - 1) + [True]


def test_leaving_a_stream_withdraws_its_request(engine: LLMEngine) -> None:
    stream = LLM.over(engine).stream("A king", DRAWN)
    for _ in range(3):
        next(stream)
    assert engine.has_unfinished()
    stream.close()
    assert not engine.has_unfinished()


def test_two_streams_read_in_turn(engine: LLMEngine) -> None:
    """Each one's steps compute the other's tokens too; neither loses them, the shorter one included."""
    llm = LLM.over(engine)
    texts = [engine.generate(prompt, DRAWN, max_tokens=number)[0].text for prompt, number in (("A", 30), ("B", 6))]
    long, short = llm.stream("A", DRAWN, max_tokens=30), llm.stream("B", DRAWN, max_tokens=6)
    pieces = [next(long).text]
    pieces += [delta.text for _, delta in zip(range(19), long, strict=False)]  # B ends meanwhile
    assert "".join(delta.text for delta in short) == texts[1]
    pieces += [delta.text for delta in long]
    assert "".join(pieces) == texts[0]


def test_a_stream_beside_a_batch_and_steps_by_hand(engine: LLMEngine) -> None:
    expected = engine.generate(["A", "B", "C"], DRAWN)
    pieces = []
    by_hand = engine.add_request("B", DRAWN, request_id="by hand")
    for place, delta in enumerate(LLM.over(engine).stream("A", DRAWN)):
        pieces.append(delta.text)
        if place == 3:
            assert engine.generate("C", DRAWN)[0].text == expected[2].text
    others = finish(engine)
    assert "".join(pieces) == expected[0].text
    assert others[by_hand].text == expected[1].text


def test_a_stream_whose_request_is_withdrawn_ends(engine: LLMEngine) -> None:
    stream = LLM.over(engine).stream("A king", DRAWN)
    name = next(stream).output.request_id
    engine.abort_request(name)
    assert list(stream) == []


def test_a_stream_refuses_at_once(engine: LLMEngine) -> None:
    with pytest.raises(RequestError):
        LLM.over(engine).stream([])  # not only when it is read
