"""OpenVINO GenAI's continuous batching, as a benchmark runs it."""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any

from protocol import serve


def load(folder: str, options: dict[str, Any]) -> tuple[Callable[[dict[str, Any]], dict[str, Any]], dict[str, str]]:
    import numpy as np
    import openvino
    import openvino_genai

    scheduler = openvino_genai.SchedulerConfig()
    scheduler.cache_size = 0
    scheduler.num_kv_blocks = -(-options["kv_tokens"] // 32)  # a block of it holds 32 tokens on a CPU
    scheduler.max_num_seqs = options["max_num_seqs"]
    scheduler.max_num_batched_tokens = 2048
    scheduler.enable_prefix_caching = True
    properties = {
        "INFERENCE_PRECISION_HINT": "bf16",
        "INFERENCE_NUM_THREADS": options["num_threads"],
        **options.get("properties", {}),
    }
    pipeline = openvino_genai.ContinuousBatchingPipeline(folder, scheduler, "CPU", properties)

    def run(workload: dict[str, Any]) -> dict[str, Any]:
        inputs = [openvino.Tensor(np.array([prompt], dtype=np.int64)) for prompt in workload["prompts"]]
        configs = []
        for count in workload["outputs"]:
            config = openvino_genai.GenerationConfig()
            config.max_new_tokens = config.min_new_tokens = count
            config.ignore_eos, config.do_sample = True, False
            configs.append(config)
        outputs = pipeline.generate(inputs, configs)
        return {
            "tokens": sum(len(output.m_generation_ids[0]) for output in outputs),
            "first": list(outputs[0].m_generation_ids[0][:8]),
        }

    versions = {
        "openvino": openvino.__version__,
        "openvino-genai": openvino_genai.__version__,
        "python": platform.python_version(),
    }
    return run, versions


serve(load)
