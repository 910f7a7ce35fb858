"""What cannot be served is refused on arrival by its own exception, and nobody else notices."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import make_checkpoint, write_tokenizer
from engine_case import assert_clean

from octavo import LLM, EngineConfig, LLMEngine, SamplingParams
from octavo.errors import (
    ConfigError,
    EmptyPromptError,
    InvalidTokenError,
    ModelError,
    ModelNotFoundError,
    OctavoError,
    PromptTooLongError,
    RequestError,
    RequestTooLargeError,
    SamplingParamsError,
    UnsafeWeightsError,
    UnsupportedError,
    UnsupportedModelError,
    WeightsError,
)
from octavo.simulator.oracle import OracleExecutor

NAN, INFINITY = float("nan"), float("inf")
GOOD = [5, 6, 7]

PROMPTS: list[tuple[Any, dict[str, Any], type[OctavoError], str]] = [
    ([], {}, EmptyPromptError, "no tokens"),
    ("", {}, EmptyPromptError, "no tokens"),
    (np.array([], dtype=np.int64), {}, EmptyPromptError, "no tokens"),
    ([5, 384], {}, InvalidTokenError, "384 is outside"),
    ([-1], {}, InvalidTokenError, "-1 is outside"),
    ([2**70], {}, InvalidTokenError, "outside"),
    ([5, 1.5], {}, InvalidTokenError, "1.5 is not an integer"),
    ([5, "a"], {}, InvalidTokenError, "'a' is not an integer"),
    ([5, None], {}, InvalidTokenError, "None is not an integer"),
    ([True], {}, InvalidTokenError, "True is not an integer"),
    (np.array([1.0, 2.0]), {}, InvalidTokenError, "not an integer"),
    (b"bytes", {}, RequestError, "string or a list"),
    ({5: 6}, {}, RequestError, "string or a list"),
    (7, {}, RequestError, "string or a list"),
    ("a lone \ud800 surrogate", {}, RequestError, "Unicode"),
    ([5] * 512, {}, PromptTooLongError, "512 tokens"),
    ([5] * 5000, {}, PromptTooLongError, "max_model_len"),
    (GOOD, {"max_tokens": 2000}, RequestTooLargeError, "pool: they take 501 blocks of 300"),
    (GOOD, {"max_tokens": 500, "n": 4}, RequestTooLargeError, "num_blocks"),
    (GOOD, {"n": 13}, RequestTooLargeError, "max_num_seqs is 12"),
    (GOOD, {"best_of": 13}, RequestTooLargeError, "max_num_seqs is 12"),
    (GOOD, {"beam_width": 13, "max_tokens": 4}, RequestTooLargeError, "max_num_seqs is 12"),
    (GOOD, {"min_tokens": 510}, SamplingParamsError, "min_tokens=510"),
    (GOOD, {"stop_token_ids": [384]}, SamplingParamsError, "stop_token_ids"),
    (GOOD, {"allowed_token_ids": [5, 400]}, SamplingParamsError, "allowed_token_ids"),
    (GOOD, {"logit_bias": {384: 1.0}}, SamplingParamsError, "logit_bias"),
]

PARAMETERS: list[tuple[dict[str, Any], str]] = [
    ({"temperature": NAN}, "temperature=nan is not finite"),
    ({"temperature": -0.1}, "temperature=-0.1 must be at least"),
    ({"temperature": INFINITY}, "temperature=inf"),
    ({"temperature": "hot"}, "temperature must be a number"),
    ({"temperature": True}, "temperature must be a number"),
    ({"top_p": 0.0}, "top_p=0.0 must be above"),
    ({"top_p": 1.1}, "top_p=1.1 must be at most"),
    ({"top_p": NAN}, "top_p=nan"),
    ({"top_k": -2}, "top_k=-2"),
    ({"top_k": 1.5}, "top_k must be an integer"),
    ({"min_p": -0.1}, "min_p"),
    ({"repetition_penalty": 0.0}, "repetition_penalty"),
    ({"presence_penalty": 2.1}, "presence_penalty"),
    ({"frequency_penalty": -2.1}, "frequency_penalty"),
    ({"n": 0}, "n=0"),
    ({"n": 1.0}, "n must be an integer"),
    ({"n": 3, "best_of": 2}, "best_of=2 is less than n=3"),
    ({"max_tokens": 0}, "max_tokens=0"),
    ({"max_tokens": -5}, "max_tokens=-5"),
    ({"min_tokens": -1}, "min_tokens=-1"),
    ({"min_tokens": 9, "max_tokens": 8}, "min_tokens=9 exceeds max_tokens=8"),
    ({"seed": 2**64}, "seed"),
    ({"seed": "x"}, "seed must be an integer"),
    ({"logprobs": -1}, "logprobs"),
    ({"logprobs": 65}, "logprobs=65"),
    ({"prompt_logprobs": 65}, "prompt_logprobs=65"),
    ({"ignore_eos": 1}, "ignore_eos must be True or False"),
    ({"stop": ""}, "stop holds ''"),
    ({"stop": ["a", ""]}, "stop holds ''"),
    ({"stop": 5}, "stop must be a list of strings"),
    ({"stop": {"a"}}, "stop must be a list of strings"),
    ({"stop_token_ids": "5"}, "stop_token_ids must be a list"),
    ({"stop_token_ids": [1.5]}, "stop_token_ids entry must be an integer"),
    ({"stop_token_ids": [-1]}, "stop_token_ids entry=-1"),
    ({"allowed_token_ids": []}, "allowed_token_ids is empty"),
    ({"bad_words": [""]}, "bad_words holds ''"),
    ({"bad_words": "word"}, "bad_words must be a list"),
    ({"logit_bias": [5]}, "logit_bias must map"),
    ({"logit_bias": {5: NAN}}, "logit_bias value=nan"),
    ({"logit_bias": {5: 101}}, "logit_bias value=101"),
    ({"logit_bias": {"5": 1}}, "logit_bias key must be an integer"),
    ({"beam_width": 0}, "beam_width=0"),
    ({"beam_width": 2, "n": 3}, "n=3 exceeds beam_width=2"),
    ({"beam_width": 2, "best_of": 2}, "best_of does not go with"),
    ({"beam_width": 2, "temperature": 0.7}, "draws nothing"),
    ({"beam_width": 2, "top_k": 5}, "leave top_k out"),
    ({"beam_width": 2, "logprobs": 1}, "logprobs does not go with"),
    ({"beam_width": 2, "stop": "x"}, "stop strings do not go with"),
    ({"beam_width": 2, "length_penalty": NAN}, "length_penalty=nan"),
    ({"beam_width": 2, "length_penalty": 1e9}, "length_penalty"),
    ({"beam_width": 2, "length_penalty": -1e9}, "length_penalty"),
    ({"temprature": 0.5}, "did you mean 'temperature'"),
]


class Bystander:
    """A request that is half-way while others are refused, and must end as if it were alone."""

    def __init__(self, engine: LLMEngine) -> None:
        self.engine = engine
        self.params = SamplingParams(temperature=0.8, seed=3, max_tokens=12, ignore_eos=True)
        self.expected = engine.generate([GOOD], self.params)[0].outputs[0].token_ids
        self.id = engine.add_request(GOOD, self.params)
        for _ in range(5):
            engine.step()
        self.held = engine.scheduler.memory.num_free

    def is_undisturbed(self) -> None:
        scheduler = self.engine.scheduler
        scheduler.memory.audit(scheduler.sequences())
        assert scheduler.memory.num_free == self.held
        assert list(scheduler.requests) == [self.id]
        assert not scheduler.residency.waiting
        while self.engine.has_unfinished():
            outputs = self.engine.step()
        assert outputs[0].outputs[0].token_ids == self.expected


@pytest.mark.parametrize(("prompt", "keywords", "error", "says"), PROMPTS)
def test_a_request_that_cannot_be_served_is_refused_alone(
    engine: LLMEngine, prompt: Any, keywords: dict[str, Any], error: type[OctavoError], says: str
) -> None:
    bystander = Bystander(engine)
    with pytest.raises(RequestError, match=says) as raised:
        engine.add_request(prompt, SamplingParams(**keywords))
    assert raised.type is error
    with pytest.raises(RequestError) as raised:  # together with prompts that could be served
        engine.generate([GOOD, prompt, "a king"], SamplingParams(**keywords))
    assert raised.type is error
    bystander.is_undisturbed()


@pytest.mark.parametrize(("keywords", "says"), PARAMETERS)
def test_a_parameter_out_of_range_is_refused(engine: LLMEngine, keywords: dict[str, Any], says: str) -> None:
    bystander = Bystander(engine)
    with pytest.raises(SamplingParamsError) as raised:
        SamplingParams(**keywords)
    assert says in str(raised.value)
    with pytest.raises(SamplingParamsError) as raised:
        engine.generate([GOOD], **keywords)
    assert says in str(raised.value)
    bystander.is_undisturbed()


def test_arguments_that_are_no_parameters(engine: LLMEngine) -> None:
    bystander = Bystander(engine)
    for wrong in (b"bytes", {5: 6}, {5, 6}, 7, None):
        with pytest.raises(RequestError, match="prompts must be"):
            engine.generate(wrong)  # type: ignore[arg-type]
    with pytest.raises(SamplingParamsError, match="params must be SamplingParams"):
        engine.add_request(GOOD, {"n": 2})  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="2 sampling parameters for 3 prompts"):
        engine.generate([GOOD] * 3, [SamplingParams()] * 2)
    with pytest.raises(RequestError, match="is live already"):
        engine.add_request(GOOD, request_id=bystander.id)
    for keywords in ({"request_id": ""}, {"user": 5}, {"cache_salt": "x" * 1025}):
        with pytest.raises(RequestError, match="1 to 1,024 characters"):
            engine.add_request(GOOD, **keywords)  # type: ignore[arg-type]
    for priority in (1.5, True, 2**40):
        with pytest.raises(RequestError, match="priority must be an integer"):
            engine.add_request(GOOD, priority=priority)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="means nothing under policy='fcfs'"):
        engine.add_request(GOOD, priority=1)
    bystander.is_undisturbed()


def test_what_is_known_only_at_the_end_cannot_be_streamed(engine: LLMEngine) -> None:
    bystander = Bystander(engine)
    llm = LLM.over(engine)
    with pytest.raises(UnsupportedError, match="beam search cannot be streamed"):
        llm.stream(GOOD, beam_width=2)
    with pytest.raises(UnsupportedError, match="best_of > n cannot be streamed"):
        llm.stream(GOOD, SamplingParams(best_of=2))
    bystander.is_undisturbed()


@pytest.mark.parametrize("messages", [[], "hello", {"role": "user", "content": "x"}, 5, [[]], [5], [{"role": "user"}]])
def test_messages_that_are_no_conversation(engine: LLMEngine, messages: Any) -> None:
    bystander = Bystander(engine)
    with pytest.raises(RequestError):
        LLM.over(engine).chat(messages)
    bystander.is_undisturbed()


@pytest.mark.parametrize("prompt", [5, None, b"bytes", {"role": "user"}, [], ""])
def test_prompts_that_cannot_be_streamed(engine: LLMEngine, prompt: Any) -> None:
    bystander = Bystander(engine)
    with pytest.raises(RequestError):
        LLM.over(engine).stream(prompt)
    bystander.is_undisturbed()


def test_a_tokenizer_of_another_model(tiny_llama: Path) -> None:
    config = EngineConfig(model=str(tiny_llama), block_size=4, num_blocks=60)
    with LLMEngine(config, executor=OracleExecutor(60, 4, vocab_size=100, max_model_len=200)) as engine:
        with pytest.raises(InvalidTokenError, match="do not belong together"):
            engine.generate("the king")
        assert len(engine.generate([[5, 99]], max_tokens=3)[0].outputs[0].token_ids) == 3
        assert_clean(engine)


def test_the_longest_prompt_that_fits_is_served(engine: LLMEngine) -> None:
    output = engine.generate([[5] * 511], temperature=0.0, ignore_eos=True, max_tokens=100)[0]
    assert len(output.outputs[0].token_ids) == 1  # up to the end of the context
    assert output.outputs[0].finish_reason == "length"


# -- models -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def copy(tiny_llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_llama, tmp_path / "model"))


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def edited(**fields: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))

    return edit


def truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


MODELS: list[tuple[str, Callable[[Path], None], type[ModelError], str]] = [
    ("no config", without("config.json"), ModelNotFoundError, "config.json"),
    ("no weights", without("model.safetensors"), ModelNotFoundError, "safetensors"),
    ("no tokenizer", without("tokenizer.json"), ModelNotFoundError, "tokenizer.json"),
    ("truncated", truncated, WeightsError, "model.safetensors"),
    ("pickle only", pickled, UnsafeWeightsError, "pytorch_model.bin"),
    ("architecture", edited(architectures=["MambaForCausalLM"]), UnsupportedModelError, "MambaForCausalLM"),
    ("shape", edited(intermediate_size=161), WeightsError, "shape"),
]


@pytest.mark.parametrize(("damage", "error", "says"), [case[1:] for case in MODELS], ids=[case[0] for case in MODELS])
def test_a_folder_that_is_no_model_is_refused(
    copy: Path, damage: Callable[[Path], None], error: type[ModelError], says: str
) -> None:
    damage(copy)
    with pytest.raises(ModelError) as raised:
        LLM(str(copy), dtype="float32", num_blocks=50, num_threads=1)
    assert raised.type is error
    assert says in str(raised.value)


def test_no_folder_at_all(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="nowhere"):
        LLM(str(tmp_path / "nowhere"))


def test_unknown_keywords_name_their_neighbour(tiny_llama: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'num_blocks'"):
        LLM(str(tiny_llama), num_block=50)
    with pytest.raises(ConfigError, match="did you mean 'max_num_seqs'"):
        EngineConfig(max_num_seq=4)


def test_swap_space_that_cannot_be_had_is_refused(tiny_llama: Path) -> None:
    with pytest.raises(ConfigError, match=r"swap_space=60000 GiB leaves no room for the KV memory itself: .* is free"):
        LLMEngine(EngineConfig(model=str(tiny_llama), swap_space=60_000))
    with pytest.raises(ConfigError, match=r"swap_space=1e-07 GiB is less than one block of .* bytes"):
        LLMEngine(EngineConfig(model=str(tiny_llama), swap_space=1e-7))


def test_a_context_that_cannot_be_had_is_refused(tiny_llama: Path) -> None:
    with pytest.raises(ConfigError, match="max_model_len=1000 exceeds"):
        LLM(str(tiny_llama), dtype="float32", num_blocks=50, max_model_len=1000)
    with pytest.raises(ConfigError, match="max_model_len=500 cannot be served"):
        LLM(str(tiny_llama), dtype="float32", num_blocks=10, max_model_len=500)


def test_a_pool_smaller_than_the_context_serves_what_fits(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", max_position_embeddings=256)
    with LLMEngine(EngineConfig(model=str(folder), dtype="float32", num_blocks=3, num_threads=1)) as engine:
        assert engine.facts.max_model_len == 48
        assert any("context cut from 256 to 48" in note for note in engine.facts.notes)
        output = engine.generate([[5] * 40], temperature=0.0, ignore_eos=True)[0]
        assert len(output.outputs[0].token_ids) == 8
        with pytest.raises(PromptTooLongError):
            engine.generate([[5] * 48])
        with pytest.raises(RequestTooLargeError, match="can never fit the block pool: they take 4 blocks of 3"):
            engine.generate([[5] * 40], max_tokens=9)


def test_a_tokenizer_needs_no_model_beside_it(tiny_llama: Path, tmp_path: Path) -> None:
    write_tokenizer(tmp_path, 300)
    with LLMEngine(
        EngineConfig(model=str(tiny_llama), tokenizer=str(tmp_path), num_blocks=20, dtype="float32", num_threads=1)
    ) as engine:
        assert engine.tokenizer.folder == tmp_path
    with pytest.raises(ModelNotFoundError, match=r"tokenizer\.json"):
        LLM(str(tiny_llama), tokenizer=str(tmp_path.parent), num_blocks=20)
