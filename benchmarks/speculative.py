"""Decode speed with and without n-gram speculation, on text that repeats itself and on text that does not.

    python benchmarks/speculative.py [--model DIR] [--tokens 256] [--repeats 5] [--json FILE]

One request at a time, greedy but for the last workload:

- "own tale": the model has written a tale; the tale so far is the prompt, and it goes on;
- "editing": the prompt is a passage, the answer is the passage with a name changed. (The bundled model follows no
  instructions. So it computes every step in full, and then the answer's tokens are taken for what it drew.)
- "no repetition": drawn at temperature 1 from a short prompt, another seed in each repetition.

The two engines take turns, and each repetition gives one ratio; the medians are printed with the extremes. Rates are
those after the first token.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any, NamedTuple, cast

from machine import describe

from octavo import EngineConfig, LLMEngine, RequestOutput, SamplingParams
from octavo.plan import ChunkResult, Sample

OPENING = "Once upon a time there was a miller who had three sons"
NAMES = (" Hans", " Peter")
PASSAGE = """Once upon a time there lived a poor woodcutter whose name was Hans. One morning Hans took his axe and went
into the deep forest to cut some wood. When he had walked for an hour, Hans came to a little house that stood under an
old oak tree. In front of the house sat a grey man with a long beard. "Good morning, Hans," said the grey man. "What do
you seek so far from home?" "I seek a dry tree," answered Hans, "for my mother is cold, and we have no wood to burn."
Then the grey man gave Hans a golden key, and said: "Go to the great stone by the river. There you will find a door, and
behind the door a room full of wood that never ends." So Hans thanked the old man, put the key in his pocket, and went
down to the river as fast as his legs would carry him. """.replace("\n", " ")


class Workload(NamedTuple):
    """A prompt, and how to go on from it."""

    name: str
    prompt: list[int]
    temperature: float
    answer: list[int]  #: taken for what the model draws; [] leaves it its own will


class Answers:
    """A sampler that does all its work, and then says what it was told to.

    Args:
        sampler: an executor's.
    """

    def __init__(self, sampler: Any) -> None:
        self._sampler = sampler
        self.first = 0
        self.answer: list[int] = []

    def run(self, logits: Any, slots: Any, positions: Any, wants: Any, draws: Any) -> list[ChunkResult]:
        results: list[ChunkResult] = self._sampler.run(logits, slots, positions, wants, draws)
        if not self.answer:
            return results
        answers = (self.answer[position - self.first] for position in positions.tolist())
        return [ChunkResult((Sample(token),)) for token in answers]


class Rate(NamedTuple):
    """What one run was measured to do."""

    tokens_per_second: float
    drafted: int
    accepted: int


def workloads(engine: LLMEngine, tokens: int) -> list[Workload]:
    encode = engine.tokenizer.encode
    opening = encode(OPENING)
    tale = engine.generate([opening], greedy(tokens))[0].outputs[0].token_ids
    return [
        Workload("own tale", opening + tale, 0.0, []),
        Workload("editing", encode(PASSAGE), 0.0, encode(PASSAGE.replace(*NAMES))),
        Workload("no repetition", opening, 1.0, []),
    ]


def greedy(tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)


def rate(engine: LLMEngine, workload: Workload, tokens: int, seed: int) -> Rate:
    answers = cast(Answers, cast(Any, engine)._executor._sampler)
    answers.first, answers.answer = len(workload.prompt), workload.answer
    tokens = min(tokens, len(workload.answer) or tokens)
    params = SamplingParams(temperature=workload.temperature, max_tokens=tokens, ignore_eos=True, seed=seed)
    output: RequestOutput = engine.generate([workload.prompt], params)[0]
    metrics = output.metrics
    assert metrics.finished is not None
    assert metrics.first_token is not None
    seconds = metrics.finished - metrics.first_token
    return Rate((tokens - 1) / seconds, metrics.num_drafted_tokens, metrics.num_accepted_tokens)


def compare(plain: LLMEngine, guessing: LLMEngine, workload: Workload, tokens: int, repeats: int) -> dict[str, Any]:
    pairs = []
    for seed in range(repeats + 1):  # the first to warm up
        engines = (plain, guessing) if seed % 2 else (guessing, plain)
        rates = {id(engine): rate(engine, workload, tokens, seed) for engine in engines}
        pairs.append((rates[id(plain)], rates[id(guessing)]))
    del pairs[0]
    ratios = [b.tokens_per_second / a.tokens_per_second for a, b in pairs]
    return {
        "workload": workload.name,
        "prompt_tokens": len(workload.prompt),
        "tokens": min(tokens, len(workload.answer) or tokens),
        "plain_tokens_per_second": statistics.median(a.tokens_per_second for a, _ in pairs),
        "speculative_tokens_per_second": statistics.median(b.tokens_per_second for _, b in pairs),
        "ratio": statistics.median(ratios),
        "least": min(ratios),
        "most": max(ratios),
        "drafted": sum(b.drafted for _, b in pairs),
        "accepted": sum(b.accepted for _, b in pairs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a folder [the bundled model]")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    with (
        LLMEngine(EngineConfig(model=options.model)) as plain,
        LLMEngine(EngineConfig(model=options.model, speculative="ngram")) as guessing,
    ):
        costs = guessing.scheduler.config.step_costs
        print(f"steps of 1, 2, 4, ... rows take {', '.join(f'{cost:.2f}' for cost in costs)} of the first")
        for engine in (plain, guessing):
            executor = cast(Any, engine)._executor
            executor._sampler = Answers(executor._sampler)
        for workload in workloads(plain, options.tokens):
            row = compare(plain, guessing, workload, options.tokens, options.repeats)
            rows.append(row)
            print(
                f"{row['workload']:14} {row['prompt_tokens']:4} + {row['tokens']} tokens: "
                f"{row['plain_tokens_per_second']:6.0f} tokens/s, speculative "
                f"{row['speculative_tokens_per_second']:6.0f}: {row['ratio']:.2f}x ({row['least']:.2f} to "
                f"{row['most']:.2f}); {row['accepted']} of {row['drafted']} guesses accepted",
                flush=True,
            )
    if options.json is not None:
        report = {"machine": describe(), "model": options.model or "tales", "step_costs": costs, "rows": rows}
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
