"""How a line of tokens begins."""

from __future__ import annotations

from octavo.request import Request, SamplingParams, Sequence


def test_a_sequence_begins_with_its_prompt() -> None:
    request = Request("r", [1, 2, 3], SamplingParams(max_tokens=4), max_new_tokens=4, salt="s")
    seq = Sequence(0, request, 0, [1, 2, 3, 9], num_groups=2)
    assert seq.output_token_ids == [9]
    assert (seq.num_prompt, seq.limit, seq.num_total, seq.num_computed) == (3, 7, 4, 0)
    assert len(seq.tables) == 2
    assert seq.node == ("salt", "s")
    assert "tokens=4" in repr(seq)
    assert "prompt=3 tokens" in repr(request)
