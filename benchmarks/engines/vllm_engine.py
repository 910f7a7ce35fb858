"""vLLM on a CPU or a GPU, as a benchmark runs it."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from typing import Any

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "4")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", ",".join(map(str, sorted(os.sched_getaffinity(0)))))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from protocol import serve


def load(folder: str, options: dict[str, Any]) -> tuple[Callable[[dict[str, Any]], dict[str, Any]], dict[str, str]]:
    import torch
    import vllm
    from vllm import LLM, SamplingParams

    on_gpu = {name: options[name] for name in ("gpu_memory_utilization", "max_num_batched_tokens") if name in options}
    temperature = options.get("temperature", 0)
    engine = LLM(
        model=folder,
        dtype=options["dtype"],
        max_num_seqs=options["max_num_seqs"],
        max_model_len=options["max_model_len"],
        skip_tokenizer_init=True,
        enforce_eager=bool(options.get("eager", False)),
        **on_gpu,
    )

    def run(workload: dict[str, Any]) -> dict[str, Any]:
        engine.reset_prefix_cache()
        params = [
            SamplingParams(temperature=temperature, ignore_eos=True, max_tokens=n, detokenize=False)
            for n in workload["outputs"]
        ]
        prompts = [{"prompt_token_ids": prompt} for prompt in workload["prompts"]]
        outputs = engine.generate(prompts, params, use_tqdm=False)
        return {
            "tokens": sum(len(output.outputs[0].token_ids) for output in outputs),
            "first": list(outputs[0].outputs[0].token_ids[:8]),
        }

    return run, {"vllm": vllm.__version__, "torch": torch.__version__, "python": platform.python_version()}


if __name__ == "__main__":  # vLLM spawns its engine process, which imports this file again
    serve(load)
