"""fork_request: another way on from a request, running, waiting or ended."""

from __future__ import annotations

from pathlib import Path

import pytest
from engine_case import assert_clean, finish, oracle_engine

from octavo import LLMEngine, SamplingParams
from octavo.errors import RequestError, UnknownRequestError, UnsupportedError
from octavo.simulator.oracle import chain, draw, mix

PROMPT = [5, 6, 7, 8, 9, 10]


def params(max_tokens: int = 12, **more: object) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, ignore_eos=True, **more)  # type: ignore[arg-type]


def told(prompt: list[int], index: int, count: int, salt: str | None = None) -> list[int]:
    """What the make-believe model says after a prompt, with a noise index."""
    digest, tokens = chain(salt, prompt)[-1], []
    for _ in range(count):
        tokens.append(draw(digest, index, 384))
        digest = mix(digest, tokens[-1])
    return tokens


def tokens_of(engine: LLMEngine, name: str) -> list[int]:
    return list(engine.scheduler.requests[name].sequences[0].tokens)


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("caching", [True, False])
@pytest.mark.parametrize("at", [1, 4, 6, 7, 9, None])
def test_a_running_request_is_forked_at_any_token(tiny_llama: Path, at: int | None, caching: bool, depth: int) -> None:
    with oracle_engine(tiny_llama, depth=depth, prefix_caching=caching) as engine:
        name = engine.add_request(PROMPT, params())
        for _ in range(5):
            engine.step()
        so_far = tokens_of(engine, name)
        fork = engine.fork_request(name, at)
        begins = so_far[: at or len(so_far)]
        outputs = finish(engine)
        assert outputs[name].outputs[0].token_ids == told(PROMPT, 0, 12)
        output = outputs[fork]
        assert output.prompt is None
        assert output.prompt_token_ids == begins
        assert output.outputs[0].token_ids == told(begins, 1, 12)
        assert output.outputs[0].finish_reason == "length"
        # All but the last token was in memory, in a shared block, the partly filled one included.
        assert output.metrics.num_cached_tokens == len(begins) - 1
        assert output.metrics.num_shared_blocks >= -(-(len(begins) - 1) // 4)
        copies = sum(outputs[each].metrics.num_copies for each in (name, fork))
        assert copies == (1 if (len(begins) - 1) % 4 else 0)
        assert engine.stats().num_copies == copies
        assert_clean(engine)


def test_a_fork_of_one_that_ended_begins_with_what_is_cached(tiny_llama: Path) -> None:
    with oracle_engine(tiny_llama) as engine:
        name = engine.generate([PROMPT], params())[0].request_id
        fork = engine.fork_request(name, 15, params(3))
        output = finish(engine)[fork]
        begins = [*PROMPT, *told(PROMPT, 0, 9)]
        assert output.prompt_token_ids == begins
        assert output.outputs[0].token_ids == told(begins, 1, 3)
        assert output.metrics.num_cached_tokens == 12
        engine.reset_prefix_cache()
        again = engine.fork_request(name, 15)  # with the first one's parameters
        output = finish(engine)[again]
        assert output.outputs[0].token_ids == told(begins, 2, 12)
        assert output.metrics.num_cached_tokens == 0
        of_fork = engine.fork_request(fork)
        assert finish(engine)[of_fork].prompt_token_ids == [*begins, *told(begins, 1, 3)]
        assert_clean(engine)


def test_waiting_aborted_and_salted_requests(tiny_llama: Path) -> None:
    with oracle_engine(tiny_llama, max_num_seqs=1, policy="fair") as engine:
        engine.add_request([1, 2, 3], params(4))
        engine.step()
        waiting = engine.add_request(PROMPT, params(4), user="u", cache_salt="s")
        fork = engine.fork_request(waiting, 3, params(4))
        request = engine.scheduler.requests[fork]
        assert (request.user, request.salt) == ("u", "s")
        engine.abort_request(waiting)
        other = engine.fork_request(waiting)
        outputs = finish(engine)
        assert outputs[fork].outputs[0].token_ids == told(PROMPT[:3], 1, 4, "s")
        assert outputs[other].outputs[0].token_ids == told(PROMPT, 2, 4, "s")
        assert_clean(engine)


def test_which_output_of_several(tiny_llama: Path) -> None:
    with oracle_engine(tiny_llama) as engine:
        name = engine.add_request(PROMPT, params(n=3))
        for _ in range(3):
            engine.step()
        with pytest.raises(RequestError, match="has 3 outputs: say index=0 to 2"):
            engine.fork_request(name)
        with pytest.raises(RequestError, match=r"index=3 is out of range: request '0' has 3 output"):
            engine.fork_request(name, index=3)
        second = engine.fork_request(name, index=1)
        prompt_alone = engine.fork_request(name, 5)  # in which all three agree
        begins = list(engine.scheduler.requests[name].sequences[1].tokens)
        outputs = finish(engine)
        assert outputs[second].prompt_token_ids == begins
        assert len(outputs[second].outputs) == 1
        assert outputs[second].outputs[0].token_ids == told(begins, 3, 12)
        assert outputs[prompt_alone].outputs[0].token_ids == told(PROMPT[:5], 4, 12)
        twice = engine.fork_request(name, index=2, params=params(n=2))
        begins = [*PROMPT, *told(PROMPT, 2, 12)]
        got = [each.token_ids for each in finish(engine)[twice].outputs]
        assert got == [told(begins, 5, 12), told(begins, 6, 12)]
        assert_clean(engine)


def test_a_beam_search_is_forked_when_it_has_ended(tiny_llama: Path) -> None:
    with oracle_engine(tiny_llama) as engine:
        name = engine.add_request(PROMPT, params(5, beam_width=3, n=2))
        engine.step()
        with pytest.raises(UnsupportedError, match="is a beam search that still runs"):
            engine.fork_request(name, 2)
        best = finish(engine)[name].outputs[1].token_ids
        fork = engine.fork_request(name, index=1)
        output = finish(engine)[fork]
        assert output.prompt_token_ids == [*PROMPT, *best]
        assert len(output.outputs) == 2  # it searches, as the other one did
        assert_clean(engine)


def test_what_cannot_be_forked(tiny_llama: Path) -> None:
    with oracle_engine(tiny_llama, retained_requests=2) as engine:
        names = [output.request_id for output in engine.generate([PROMPT, PROMPT[:3], PROMPT[:4]], params(2))]
        ended = [name for name in names if engine._retained.find(name)]
        assert len(ended) == len(engine._retained) == 2
        gone = next(name for name in names if name not in ended)
        with pytest.raises(UnknownRequestError, match="is live or among the last 2 that ended"):
            engine.fork_request(gone)
        name = ended[0]
        length = len(engine._retained._origins[name].lines[0])
        for at in (0, -1, length + 1):
            with pytest.raises(RequestError, match=f"at={at} is out of range: .* use 1 to {length}"):
                engine.fork_request(name, at)
        with pytest.raises(RequestError, match="at must be an integer"):
            engine.fork_request(name, 1.5)  # type: ignore[arg-type]
        with pytest.raises(RequestError, match="index must be an integer, not True"):
            engine.fork_request(name, index=True)
        with pytest.raises(RequestError, match="can never fit"):
            engine.fork_request(name, params=params(10_000))
        assert not engine.scheduler.requests
        # Looked for last, it is the other one that goes.
        engine.fork_request(name, params=params(1))
        finish(engine)
        assert engine._retained.find(name)
        assert_clean(engine)


def test_nothing_is_kept_where_nothing_is_asked_for(tiny_llama: Path) -> None:
    with oracle_engine(tiny_llama, retained_requests=0) as engine:
        name = engine.generate([PROMPT], params(2))[0].request_id
        with pytest.raises(UnknownRequestError):
            engine.fork_request(name)


def test_text_goes_on_where_the_fork_begins(engine: LLMEngine) -> None:
    """Its text is what its own tokens add, whatever the cut goes through; stop strings look at that alone."""
    first = engine.generate(["a little tale"], temperature=0.0, max_tokens=12, ignore_eos=True)[0]
    whole = [*first.prompt_token_ids, *first.outputs[0].token_ids]
    for at in range(1, len(whole) + 1, 5):
        fork = engine.fork_request(first.request_id, at, SamplingParams(temperature=0.0, max_tokens=6, logprobs=1))
        forked = finish(engine)[fork]
        fresh = engine.generate([whole[:at]], temperature=0.0, max_tokens=6, logprobs=1)[0]
        assert forked.prompt_token_ids == fresh.prompt_token_ids
        assert forked.outputs[0].text == fresh.outputs[0].text
        assert forked.outputs[0].token_ids == fresh.outputs[0].token_ids
        assert len(forked.outputs[0].logprobs or ()) == len(forked.outputs[0].token_ids)


def test_a_request_fails_alone_for_lack_of_memory_under_v1(tiny_llama: Path) -> None:
    with oracle_engine(tiny_llama, victims="none", num_blocks=8, prefix_caching=False) as engine:
        names = [engine.add_request([token] * 12, params(12)) for token in (1, 2)]
        outputs = finish(engine)
        assert [outputs[name].outputs[0].finish_reason for name in names] == ["error", "length"]
        assert "out of blocks" in (outputs[names[0]].error or "")
        assert engine.stats().num_out_of_blocks == 1
        engine.reset_stats()
        assert engine.stats().num_out_of_blocks == 0
        assert_clean(engine)
