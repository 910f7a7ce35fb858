"""What keys and values in int8 cost: the bundled model's perplexity on tales that it was not trained on.

    python benchmarks/kv_quality.py fairy-tales.txt.gz [--tokens 40000] [--model FOLDER] [--dtype bfloat16]

The corpus is the one that ``tools/train_tales.py`` trained on, which holds the same passages out again. They are cut
into runs of 1,000 tokens, each scored as a prompt of its own, once with keys and values in the model's dtype and once
in int8; whatever a token attends to was stored so, tokens of its own chunk included.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import statistics
import sys
from pathlib import Path
from types import ModuleType

from octavo import EngineConfig, LLMEngine, SamplingParams
from octavo.hub import resolve_model

RUN = 1000
"""Tokens of a prompt."""


def training_tool() -> ModuleType:
    """``tools/train_tales.py``, which knows which passages were held out."""
    path = Path(__file__).parents[1] / "tools" / "train_tales.py"
    spec = importlib.util.spec_from_file_location("train_tales", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["train_tales"] = module
    spec.loader.exec_module(module)
    return module


def held_out_runs(corpus: Path, model: str | None, num_tokens: int) -> list[list[int]]:
    """The first ``num_tokens`` held-out tokens, in runs."""
    from tokenizers import Tokenizer

    tool = training_tool()
    tokenizer = Tokenizer.from_file(str(resolve_model(model) / "tokenizer.json"))
    _, passages, _ = tool.hold_out(tool.split_passages(tool.read_text(corpus)))
    stream = tool.encode_stream(tokenizer, passages)[0].tolist()[:num_tokens]
    return [stream[i : i + RUN] for i in range(0, len(stream) - 1, RUN)]


def losses(runs: list[list[int]], config: EngineConfig) -> list[float]:
    """Nats that each token but the first of its run takes."""
    params = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0)
    with LLMEngine(config) as engine:
        outputs = engine.generate(runs, params)
    return [
        -scores[token]
        for run, output in zip(runs, outputs, strict=True)
        for token, scores in zip(run[1:], output.prompt_logprobs[1:], strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--tokens", type=int, default=40_000)
    parser.add_argument("--model")
    parser.add_argument("--dtype", default="bfloat16")
    options = parser.parse_args()
    runs = held_out_runs(options.corpus, options.model, options.tokens)
    found = {
        kind: losses(runs, EngineConfig(model=options.model, dtype=options.dtype, kv_cache_dtype=kind))
        for kind in ("auto", "int8")
    }
    for kind, nats in found.items():
        name = options.dtype if kind == "auto" else kind
        print(f"KV in {name:9} perplexity {math.exp(statistics.fmean(nats)):.4f} over {len(nats):,} tokens")
    change = [after - before for before, after in zip(*found.values(), strict=True)]
    error = statistics.stdev(change) / math.sqrt(len(change))
    print(f"change {math.expm1(statistics.fmean(change)):+.4%} (standard error {error:.4%})")


if __name__ == "__main__":
    main()
