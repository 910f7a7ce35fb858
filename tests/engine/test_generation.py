"""What an engine gives for what it is asked: every sampling parameter, on a small random model."""

from __future__ import annotations

import math
import random
from pathlib import Path

import numpy as np
import pytest
from checkpoints import load_reference, make_checkpoint

from octavo import LLM, EngineConfig, LLMEngine, RequestOutput, SamplingParams

PROMPT = "Once upon a time"
GREEDY = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)


@pytest.fixture
def greedy(engine: LLMEngine) -> RequestOutput:
    return engine.generate(PROMPT, GREEDY)[0]


def test_a_request_comes_back_whole(engine: LLMEngine, greedy: RequestOutput) -> None:
    assert greedy.finished
    assert greedy.prompt == PROMPT
    assert greedy.prompt_token_ids == engine.tokenizer.encode(PROMPT)
    assert len(greedy.outputs) == 1
    first = greedy.outputs[0]
    assert first.text == greedy.text == engine.tokenizer.decode(first.token_ids)
    assert (first.index, first.finish_reason, first.stop_reason) == (0, "length", None)
    assert len(first.token_ids) == 24
    assert first.logprobs is None
    assert first.cumulative_logprob is None
    assert greedy.prompt_logprobs is None
    assert greedy.error is None


def test_prompts_as_text_ids_arrays_and_mixtures(engine: LLMEngine, greedy: RequestOutput) -> None:
    ids = greedy.prompt_token_ids
    tokens = greedy.outputs[0].token_ids
    for prompts in (PROMPT, [PROMPT], ids, [ids], np.array(ids), [np.array(ids, np.int32)], tuple(ids), (PROMPT,)):
        outputs = engine.generate(prompts, GREEDY)  # type: ignore[arg-type]
        assert [each.outputs[0].token_ids for each in outputs] == [tokens]
    mixed = engine.generate([PROMPT, ids, np.array(ids), "another"], GREEDY)  # type: ignore[list-item]
    assert [each.prompt for each in mixed] == [PROMPT, None, None, "another"]
    assert [each.outputs[0].token_ids == tokens for each in mixed] == [True, True, True, False]
    assert engine.generate([], GREEDY) == []


def test_one_set_of_parameters_for_each_prompt(engine: LLMEngine, greedy: RequestOutput) -> None:
    each = [SamplingParams(temperature=0.0, max_tokens=length, ignore_eos=True) for length in (3, 24, 7)]
    outputs = engine.generate([PROMPT] * 3, each)
    assert [output.outputs[0].token_ids for output in outputs] == [
        greedy.outputs[0].token_ids[:length] for length in (3, 24, 7)
    ]
    outputs = engine.generate([PROMPT] * 3, each, max_tokens=5)  # keywords go over all of them
    assert [len(output.outputs[0].token_ids) for output in outputs] == [5, 5, 5]


def test_stop_strings_end_the_text_across_tokens(engine: LLMEngine) -> None:
    spelt = {token: engine.tokenizer.decode([token]) for token in range(2, 384)}
    plain = [token for token, piece in spelt.items() if len(piece) > 1 and piece.isascii() and piece.strip().isalpha()]
    params = SamplingParams(seed=4, max_tokens=24, ignore_eos=True, allowed_token_ids=plain)
    whole = engine.generate(PROMPT, params)[0]
    text, ids = whole.text, whole.outputs[0].token_ids
    assert text == "".join(spelt[token] for token in ids)
    border = len("".join(spelt[token] for token in ids[:12]))
    stop = text[border - 2 : border + 2]  # half of it in one token, half in the next
    end = text.index(stop)
    for include in (False, True):
        output = engine.generate(PROMPT, params, stop=[stop, "never"], include_stop_str_in_output=include)[0]
        assert output.text == text[: end + (len(stop) if include else 0)]
        assert output.outputs[0].finish_reason == "stop"
        assert output.outputs[0].stop_reason == stop
        assert output.outputs[0].token_ids == ids[: len(output.outputs[0].token_ids)]
        assert len(output.outputs[0].token_ids) <= 13
    late = engine.generate(PROMPT, params, stop=stop, min_tokens=23)[0]
    assert len(late.outputs[0].token_ids) >= 23
    held = engine.generate(PROMPT, params, stop=text[-3:] + "never comes")[0]
    assert held.text == text  # what could have begun a stop string is let out at the end
    assert held.outputs[0].finish_reason == "length"


def test_a_stop_string_that_only_the_end_completes(engine: LLMEngine) -> None:
    """Half a character is held back; when nothing more comes it is U+FFFD, which may be what ends the text."""
    half = next(token for token in range(2, 384) if engine.tokenizer.id_to_token(token) == "\u00c3")  # the byte C3
    params = SamplingParams(max_tokens=1, ignore_eos=True, allowed_token_ids=[half])
    assert engine.generate(PROMPT, params)[0].text == "\ufffd"
    stopped = engine.generate(PROMPT, params, stop="\ufffd")[0]
    assert (stopped.text, stopped.outputs[0].finish_reason, stopped.outputs[0].stop_reason) == ("", "stop", "\ufffd")


def test_stop_token_ids_and_the_end_of_sequence(tiny_llama: Path, engine: LLMEngine, greedy: RequestOutput) -> None:
    ids = greedy.outputs[0].token_ids
    stop = ids[9]
    first = ids.index(stop)
    output = engine.generate(PROMPT, GREEDY, stop_token_ids=[stop, 383])[0].outputs[0]
    assert output.token_ids == ids[: first + 1]
    assert (output.finish_reason, output.stop_reason) == ("stop", stop)
    later = engine.generate(PROMPT, GREEDY, stop_token_ids=[stop], min_tokens=first + 3)[0].outputs[0]
    assert stop not in later.token_ids[: first + 3]
    assert later.token_ids[:first] == ids[:first]


def test_the_models_own_end_of_sequence(tmp_path: Path, greedy: RequestOutput) -> None:
    end = greedy.outputs[0].token_ids[5]
    folder = make_checkpoint(tmp_path / "model", eos_token_id=[1, end])
    with LLMEngine(EngineConfig(model=str(folder), dtype="float32", num_blocks=40, num_threads=1)) as engine:
        ends = engine.generate(PROMPT, temperature=0.0, max_tokens=24)[0].outputs[0]
        assert ends.token_ids == greedy.outputs[0].token_ids[: greedy.outputs[0].token_ids.index(end) + 1]
        assert (ends.finish_reason, ends.stop_reason) == ("stop", None)
        on = engine.generate(PROMPT, temperature=0.0, max_tokens=24, ignore_eos=True)[0].outputs[0]
        assert on.token_ids == greedy.outputs[0].token_ids
        masked = engine.generate(PROMPT, temperature=0.0, max_tokens=24, min_tokens=20)[0].outputs[0]
        assert end not in masked.token_ids[:20]


def test_defaults_come_from_the_models_generation_config(tiny_llama: Path, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model")
    (folder / "generation_config.json").write_text(
        '{"do_sample": true, "temperature": 0.7, "top_k": 3, "top_p": 0.9, "repetition_penalty": 1.2, '
        '"max_new_tokens": 6, "eos_token_id": [1]}'
    )
    with LLMEngine(EngineConfig(model=str(folder), dtype="float32", num_blocks=40, num_threads=1)) as engine:
        name = engine.add_request(PROMPT, SamplingParams(top_k=0))
        spec = engine.scheduler.requests[name].spec
        assert (spec.temperature, spec.top_k, spec.top_p, spec.repetition_penalty) == (0.7, 0, 0.9, 1.2)
        engine.abort_request(name)
        assert len(engine.generate(PROMPT, min_tokens=6)[0].outputs[0].token_ids) == 6
        assert len(engine.generate(PROMPT, max_tokens=9, min_tokens=9)[0].outputs[0].token_ids) == 9
    (folder / "generation_config.json").write_text('{"do_sample": false, "temperature": 0.7}')
    with LLMEngine(EngineConfig(model=str(folder), dtype="float32", num_blocks=40, num_threads=1)) as engine:
        name = engine.add_request(PROMPT)
        assert engine.scheduler.requests[name].spec.temperature == 0.0
        assert engine.scheduler.requests[name].max_new_tokens == 512 - len(engine.tokenizer.encode(PROMPT))


def test_the_same_seed_draws_the_same_whoever_shares_the_batch(engine: LLMEngine) -> None:
    params = SamplingParams(temperature=1.0, seed=11, max_tokens=20, ignore_eos=True)
    alone = engine.generate(PROMPT, params)[0].outputs[0].token_ids
    rng = random.Random(0)
    crowd = [rng.choices(range(2, 384), k=rng.randint(1, 40)) for _ in range(9)]
    batch = engine.generate([*crowd[:5], PROMPT, *crowd[5:]], SamplingParams(max_tokens=20, ignore_eos=True), seed=11)
    assert batch[5].outputs[0].token_ids == alone
    assert engine.generate(PROMPT, params, seed=12)[0].outputs[0].token_ids != alone
    negative, wrapped = engine.generate(
        [PROMPT] * 2, [SamplingParams(seed=seed, max_tokens=20) for seed in (-1, 2**64 - 1)]
    )
    assert negative.outputs[0].token_ids == wrapped.outputs[0].token_ids  # 64 bits either way


def test_requests_without_a_seed_differ_and_repeat_with_the_engines(tiny_llama: Path) -> None:
    def run(seed: int) -> list[list[int]]:
        config = EngineConfig(model=str(tiny_llama), dtype="float32", num_blocks=40, num_threads=1, seed=seed)
        with LLMEngine(config) as engine:
            outputs = engine.generate([PROMPT] * 3, max_tokens=12, ignore_eos=True)
            return [output.outputs[0].token_ids for output in outputs]

    first = run(0)
    assert len({tuple(tokens) for tokens in first}) == 3
    assert run(0) == first
    assert run(1) != first


def test_siblings_draw_different_noise(engine: LLMEngine) -> None:
    output = engine.generate(PROMPT, SamplingParams(n=4, seed=5, max_tokens=16, ignore_eos=True))[0]
    assert [each.index for each in output.outputs] == [0, 1, 2, 3]
    assert len({tuple(each.token_ids) for each in output.outputs}) == 4
    greedy = engine.generate(PROMPT, GREEDY, n=3)[0]
    assert len({tuple(each.token_ids) for each in greedy.outputs}) == 1


def test_logprobs_are_those_of_the_models_distribution(engine: LLMEngine, tiny_llama: Path) -> None:
    import torch

    params = SamplingParams(temperature=0.7, top_k=5, seed=1, max_tokens=10, ignore_eos=True, logprobs=4)
    output = engine.generate(PROMPT, params, prompt_logprobs=2)[0]
    first = output.outputs[0]
    ids = output.prompt_token_ids + first.token_ids
    with torch.inference_mode():
        truth = torch.log_softmax(load_reference(tiny_llama)(torch.tensor([ids])).logits[0], -1)
    start = len(output.prompt_token_ids)
    assert len(first.logprobs) == 10
    for place, entry in enumerate(first.logprobs):
        row = truth[start + place - 1]
        assert first.token_ids[place] in entry
        assert len(entry) in (4, 5)  # the drawn token beside four alternatives, or among them
        assert set(row.topk(4).indices.tolist()) <= set(entry)
        for token, logprob in entry.items():
            assert logprob == pytest.approx(float(row[token]), abs=1e-4)
    drawn = sum(entry[token] for entry, token in zip(first.logprobs, first.token_ids, strict=True))
    assert first.cumulative_logprob == pytest.approx(drawn)
    assert len(output.prompt_logprobs) == start
    assert output.prompt_logprobs[0] is None
    for place, entry in enumerate(output.prompt_logprobs[1:], 1):
        row = truth[place - 1]
        assert output.prompt_token_ids[place] in entry
        assert set(row.topk(2).indices.tolist()) <= set(entry)
        for token, logprob in entry.items():
            assert logprob == pytest.approx(float(row[token]), abs=1e-4)


def test_prompt_logprobs_pass_by_the_cache(engine: LLMEngine) -> None:
    prompt = list(range(10, 40))
    engine.generate([prompt], GREEDY)
    assert engine.generate([prompt], GREEDY)[0].metrics.num_cached_tokens == 28
    cold = engine.generate([prompt], GREEDY, prompt_logprobs=0)[0]
    assert cold.metrics.num_cached_tokens == 0
    assert [len(entry) for entry in cold.prompt_logprobs[1:]] == [1] * 29
    none_asked = engine.generate([prompt], GREEDY, logprobs=0)[0].outputs[0]
    assert [list(entry) for entry in none_asked.logprobs] == [[token] for token in none_asked.token_ids]


def test_best_of_returns_the_likeliest_first(engine: LLMEngine) -> None:
    params = SamplingParams(n=5, seed=2, max_tokens=8, ignore_eos=True, logprobs=0)
    every = engine.generate(PROMPT, params)[0].outputs
    best = engine.generate(PROMPT, params, n=2, best_of=5, logprobs=None)[0].outputs
    ranked = sorted(every, key=lambda each: -each.cumulative_logprob)[:2]
    assert [each.token_ids for each in best] == [each.token_ids for each in ranked]
    assert [each.index for each in best] == [0, 1]
    assert best[0].cumulative_logprob == pytest.approx(ranked[0].cumulative_logprob)
    assert best[0].logprobs is None


def test_truncation_leaves_only_likely_tokens(engine: LLMEngine) -> None:
    """With top_k of 1, a tiny top_p or a min_p of 1 nothing but the best token is left, at any temperature."""
    greedy = engine.generate(PROMPT, GREEDY)[0].outputs[0].token_ids
    for keywords in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}, {"temperature": 1e-7}):
        output = engine.generate(PROMPT, GREEDY, **({"temperature": 1.5} | keywords))[0]
        assert output.outputs[0].token_ids == greedy
    assert engine.generate(PROMPT, GREEDY, temperature=1.5)[0].outputs[0].token_ids != greedy


def test_edits_of_the_logits(engine: LLMEngine) -> None:
    allowed = [40, 41, 42]
    output = engine.generate(PROMPT, max_tokens=20, ignore_eos=True, allowed_token_ids=allowed)[0]
    assert set(output.outputs[0].token_ids) <= set(allowed)
    biased = engine.generate(PROMPT, GREEDY, logit_bias={50: 100.0})[0]
    assert set(biased.outputs[0].token_ids) == {50}
    banned = engine.generate(
        PROMPT, GREEDY, logit_bias={50: 100.0, 51: 90.0}, bad_words=[engine.tokenizer.decode([50])]
    )[0]
    assert 50 not in banned.outputs[0].token_ids
    spread = engine.generate(PROMPT, GREEDY, logit_bias={50: 5.0}, presence_penalty=2.0, frequency_penalty=2.0)[0]
    plain = engine.generate(PROMPT, GREEDY, logit_bias={50: 5.0})[0]
    assert spread.outputs[0].token_ids.count(50) < plain.outputs[0].token_ids.count(50)


def test_nothing_left_to_draw_fails_one_request_alone(engine: LLMEngine) -> None:
    empty = SamplingParams(max_tokens=5, min_tokens=5, allowed_token_ids=[40], stop_token_ids=[40])
    outputs = engine.generate([PROMPT, PROMPT], [empty, GREEDY])
    assert outputs[0].outputs[0].finish_reason == "error"
    assert "no token is left" in outputs[0].error
    assert len(outputs[1].outputs[0].token_ids) == 24


def test_special_tokens_are_left_out_of_the_text(engine: LLMEngine) -> None:
    params = SamplingParams(max_tokens=4, ignore_eos=True, allowed_token_ids=[1])
    assert engine.generate(PROMPT, params)[0].text == ""
    assert engine.generate(PROMPT, params, skip_special_tokens=False)[0].text == "</s>" * 4


def test_chat(engine: LLMEngine) -> None:
    llm = LLM.over(engine)
    talk = [{"role": "user", "content": "Who is there?"}]
    outputs = llm.chat([talk, [*talk, {"role": "assistant", "content": "I."}, *talk]], GREEDY)
    assert outputs[0].prompt_token_ids == engine.tokenizer.encode(
        "<|user|>Who is there?\n<|assistant|>", add_special_tokens=False
    )
    assert len(outputs[1].prompt_token_ids) > len(outputs[0].prompt_token_ids)
    assert llm.chat(talk, GREEDY)[0].text == outputs[0].text
    assert "".join(delta.text for delta in llm.stream(talk, GREEDY)) == outputs[0].text


def test_metrics(engine: LLMEngine, greedy: RequestOutput) -> None:
    metrics = greedy.metrics
    assert metrics.arrival <= metrics.first_scheduled <= metrics.first_token < metrics.finished
    assert (metrics.num_cached_tokens, metrics.num_preemptions) == (0, 0)
    again = engine.generate(PROMPT, GREEDY)[0].metrics
    assert again.num_cached_tokens == (len(greedy.prompt_token_ids) - 1) // 4 * 4
    assert again.arrival > metrics.finished


def test_progress_is_reported_to_the_end(engine: LLMEngine, capfd: pytest.CaptureFixture[str]) -> None:
    calls: list[tuple[int, int, int]] = []

    class Display:
        def update(self, finished: int, total: int, generated_tokens: int) -> None:
            calls.append((finished, total, generated_tokens))

    engine.generate([PROMPT] * 3, GREEDY, progress=Display())
    assert calls[-1] == (3, 3, 72)
    assert calls == sorted(calls)
    engine.generate([PROMPT] * 3, GREEDY, progress=True)
    assert "3/3 requests, 72 tokens" in capfd.readouterr().err


def test_a_batch_larger_than_the_slots_waits_its_turn(engine: LLMEngine) -> None:
    prompts = [[5, 6, place] for place in range(2, 42)]
    together = engine.generate(prompts, GREEDY)
    assert [output.prompt_token_ids for output in together] == prompts
    for place in (0, 17, 39):
        assert engine.generate([prompts[place]], GREEDY)[0].outputs[0].token_ids == together[place].outputs[0].token_ids


@pytest.mark.parametrize("kernels", ["reference", "cpu"])
def test_the_bundled_model_writes_english(kernels: str) -> None:
    llm = LLM(dtype="float32", kernels=kernels, num_blocks=60, num_threads=1)
    output = llm.generate("Once upon a time there was", temperature=0.0, max_tokens=30)[0]
    words = output.text.split()
    assert len(words) > 8
    assert sum(word.strip(".,;\"'").isalpha() for word in words) >= 0.8 * len(words)
    assert math.isfinite(llm.generate("The king", logprobs=0, max_tokens=3)[0].outputs[0].cumulative_logprob)
    llm.close()
