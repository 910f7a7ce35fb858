"""The model that comes with the package: transformers loads the same folder, and agrees."""

from __future__ import annotations

import pytest
import torch
from checkpoints import load_reference

from octavo import LLM, SamplingParams
from octavo.hub import bundled_model

PROMPTS = [
    "Once upon a time there was a king who",
    "The old woman said:",
    "In the midst of the forest",
    "“Dear mother,” said the youngest,",
    "A fox",
    "There lived",
]
NEW = 48


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(dtype="float32", num_blocks=200, max_num_batched_tokens=20, num_threads=1)


def test_the_prompts_are_tokenized_as_transformers_does(llm: LLM) -> None:
    import transformers

    theirs = transformers.AutoTokenizer.from_pretrained(bundled_model())
    for prompt in PROMPTS:
        assert llm.engine.tokenizer.encode(prompt) == theirs(prompt)["input_ids"]


def test_greedy_tokens_and_logprobs_are_those_of_transformers(llm: LLM) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=NEW, ignore_eos=True, logprobs=0)
    outputs = llm.generate(PROMPTS, params)
    reference = load_reference(bundled_model())
    for output in outputs:
        ids = output.prompt_token_ids + output.outputs[0].token_ids
        with torch.inference_mode():
            logits = reference(torch.tensor([ids[:-1]])).logits[0, len(output.prompt_token_ids) - 1 :]
        best, ours = logits.topk(2, dim=-1).values, torch.tensor(output.outputs[0].token_ids)
        right = (ours == logits.argmax(-1)) | (best[:, 0] - best[:, 1] <= 1e-4)
        assert right.all()
        logprobs = torch.log_softmax(logits, -1).gather(1, ours[:, None])[:, 0]
        reported = [entry[token] for entry, token in zip(output.outputs[0].logprobs, ours.tolist(), strict=True)]
        assert reported == pytest.approx(logprobs.tolist(), abs=1e-4)
        assert (
            output.text == llm.engine.tokenizer.decode(ids)[len(llm.engine.tokenizer.decode(output.prompt_token_ids)) :]
        )
