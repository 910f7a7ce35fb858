"""How much memory sequences of one request save by sharing blocks: figure 15 of the PagedAttention paper, remeasured.

    python benchmarks/sharing_saved.py [--requests 24] [--json benchmarks/results/NAME.json]

The bundled model, block size 16, prompts and outputs about as short as Alpaca's (20 tokens in, 60 out): parallel
sampling with n = 2, 4, 6 and beam search of width 2, 4, 6, as in the paper. After every step the blocks that the
sequences' tables name are counted with and without repetition; what sharing saves is one less the ratio of the sums.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
from pathlib import Path

from octavo import EngineConfig, LLMEngine, SamplingParams
from octavo.hub import bundled_model

PAPER = {"parallel": "6.1% (n = 2) to 9.8% (n = 6)", "beam": "37.6% (width 2) to 55.2% (width 6)"}
"""Kwon et al., SOSP '23, section 6.3, Alpaca."""

TEXT = (
    "There was once a poor woodcutter who lived with his wife and his two children at the edge of a great forest, and "
    "when a great dearth came over the land he could no longer get even their daily bread. One evening, as he lay in "
    "bed and turned and tossed for worry, he sighed and said to his wife: what is to become of us? "
)


def lengths(kind: str, count: int, rng: random.Random) -> list[tuple[int, int]]:
    """(prompt, output) lengths: all alike, or spread about the same means."""
    if kind == "fixed":
        return [(20, 60)] * count

    def spread(mean: float, sigma: float) -> int:
        return max(2, round(rng.lognormvariate(math.log(mean) - sigma**2 / 2, sigma)))

    return [(min(200, spread(20, 0.8)), min(240, spread(60, 0.9))) for _ in range(count)]


def saved(engine: LLMEngine, loads: list[tuple[int, int]], params: dict[str, int]) -> float:
    """The share of blocks that need not be there because they are shared, over all steps."""
    words = engine.tokenizer.encode(TEXT * 4)
    for i, (prompt, output) in enumerate(loads):
        start = (17 * i) % 40  # different beginnings, so that no request shares with another
        tokens = words[start : start + prompt]
        tokens[0] = 300 + i
        engine.add_request(tokens, SamplingParams(max_tokens=output, ignore_eos=True, seed=i, **params))
    logical = physical = 0
    while engine.has_unfinished():
        engine.step()
        tables = [table.blocks for seq in engine.scheduler.sequences() for table in seq.tables]
        logical += sum(len(blocks) for blocks in tables)
        physical += len({block for blocks in tables for block in blocks})
    return 1 - physical / logical


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=24)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    config = EngineConfig(max_num_seqs=48, num_blocks=2000, prefix_caching=False)
    rows = []
    with LLMEngine(config) as engine:
        for kind in ("fixed", "spread"):
            loads = lengths(kind, options.requests, random.Random(0))
            for method in ("parallel", "beam"):
                for width in (2, 4, 6):
                    params = {"n": width} if method == "parallel" else {"n": width, "beam_width": width}
                    rows.append(
                        {
                            "lengths": kind,
                            "mean_prompt": statistics.mean(prompt for prompt, _ in loads),
                            "mean_output": statistics.mean(output for _, output in loads),
                            "short_prompts": sum(prompt < 16 for prompt, _ in loads) / len(loads),
                            "method": method,
                            "width": width,
                            "saved": saved(engine, loads, params),
                            "paper": PAPER[method],
                        }
                    )
                    row = rows[-1]
                    print(
                        f"{kind:7} {row['mean_prompt']:5.1f} in, {row['mean_output']:5.1f} out  {method:9} {width}: "
                        f"{row['saved']:6.1%} of blocks saved   (paper: {PAPER[method]})",
                        flush=True,
                    )
    if options.json is not None:
        options.json.write_text(
            json.dumps(
                {"model": bundled_model().name, "block_size": 16, "requests": options.requests, "rows": rows}, indent=1
            )
            + "\n"
        )


if __name__ == "__main__":
    main()
