"""transformers' generate() with static, left-padded batches, as a benchmark runs it."""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any

from protocol import serve


def load(folder: str, options: dict[str, Any]) -> tuple[Callable[[dict[str, Any]], dict[str, Any]], dict[str, str]]:
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, options["dtype"])).eval()

    def run(workload: dict[str, Any]) -> dict[str, Any]:
        prompts, outputs, width = workload["prompts"], workload["outputs"], options["max_num_seqs"]
        first: list[int] = []
        for begin in range(0, len(prompts), width):
            batch = prompts[begin : begin + width]
            longest = max(map(len, batch))
            ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in batch])
            mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in batch])
            wanted = max(outputs[begin : begin + width])
            with torch.inference_mode():
                grown = model.generate(
                    ids,
                    attention_mask=mask,
                    do_sample=False,
                    max_new_tokens=wanted,
                    min_new_tokens=wanted,
                    pad_token_id=0,
                )
            first = first or grown[0, longest : longest + 8].tolist()
        # Only what was asked for counts; a static batch computes on to its longest member's end.
        return {"tokens": sum(outputs), "first": first}

    versions = {
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    return run, versions


serve(load)
