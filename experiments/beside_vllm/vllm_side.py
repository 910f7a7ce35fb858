"""Streams through vLLM's scheduler and KV cache manager: JSON of streams on stdin, JSON of their trails on stdout.

Runs in vLLM's own Python. There is no model: what a model runner would return is known beforehand. The scheduler is
built as vLLM's own unit tests build it.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import vllm
from vllm.config import CacheConfig, ModelConfig, SchedulerConfig, VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_block_hash, get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

from beside_vllm.slots import KvSlots, Work
from beside_vllm.stream import Arrival, Stream, block_names, digests
from beside_vllm.trail import Step, Trail

MAX_MODEL_LEN = 1 << 20
MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 1 << 20,
    "max_position_embeddings": MAX_MODEL_LEN,
    "rms_norm_eps": 1e-5,
    "torch_dtype": "float32",
}


class WatchedScheduler(Scheduler):
    """vLLM's scheduler, which also tells in which order it preempts (its output holds an unordered set)."""

    lost: list[str]

    def _preempt_request(self, request: Request, *args: Any, **keywords: Any) -> None:
        self.lost.append(request.request_id)
        super()._preempt_request(request, *args, **keywords)


def make_scheduler(stream: Stream, model: str) -> WatchedScheduler:
    """A scheduler for the stream. vLLM takes one block of the pool for itself (the null block), so it gets one more."""
    scheduler_config = SchedulerConfig(
        max_num_seqs=stream.max_num_seqs,
        max_num_batched_tokens=stream.max_num_batched_tokens,
        max_model_len=MAX_MODEL_LEN,
        is_encoder_decoder=False,
        enable_chunked_prefill=True,
        async_scheduling=False,
        policy=stream.policy,
        **stream.vllm,
    )
    cache_config = CacheConfig(block_size=stream.block_size, enable_prefix_caching=stream.prefix_caching)
    config = VllmConfig(
        model_config=ModelConfig(
            model=model, skip_tokenizer_init=True, dtype="float32", seed=0, max_model_len=MAX_MODEL_LEN
        ),
        scheduler_config=scheduler_config,
        cache_config=cache_config,
    )
    cache_config.num_gpu_blocks = stream.num_blocks + 1
    spec = FullAttentionSpec(block_size=stream.block_size, num_kv_heads=1, head_size=1, dtype=torch.float32)
    scheduler = WatchedScheduler(
        vllm_config=config,
        kv_cache_config=KVCacheConfig(
            num_blocks=stream.num_blocks + 1,
            kv_cache_tensors=[],
            kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)],
        ),
        structured_output_manager=StructuredOutputManager(config),
        block_size=stream.block_size,
    )
    scheduler.lost = []
    return scheduler


class VllmSide:
    """A scheduler, with a model runner that knows every token beforehand and follows every slot."""

    def __init__(self, stream: Stream, model: str) -> None:
        self.stream = stream
        self.names = block_names(stream)
        self.scheduler = make_scheduler(stream, model)
        self.pool = self.scheduler.kv_cache_manager.block_pool
        self.hasher = get_request_block_hasher(stream.block_size, sha256)
        self.hashes: dict[bytes, str] = {}  # vLLM's block hash -> our name of the content
        self.slots = KvSlots(stream.num_blocks + 1, stream.block_size)
        self.outputs: dict[str, tuple[int, ...]] = {}
        self.prompts: dict[str, int] = {}
        self.chains: dict[str, list[int]] = {}
        self.evicted: list[str] = []
        self.seen: set[str] = set()  # rows that have computed
        self.trail = Trail()
        self._watch_evictions()

    def _watch_evictions(self) -> None:
        evict = self.pool._maybe_evict_cached_block

        def watched(block: Any) -> bool:
            key = block.block_hash
            gone = evict(block)
            if gone:
                copy = self.pool.cached_block_hash_to_block.get_one_block(key)
                self.evicted.append(self.hashes[get_block_hash(key)] + ("*" if copy else ""))
            return gone

        self.pool._maybe_evict_cached_block = watched

    def run(self) -> Trail:
        """Run the stream to its end."""
        waiting = sorted(self.stream.arrivals, key=lambda arrival: arrival.step)
        withdrawn = [arrival for arrival in waiting if arrival.withdrawn is not None]
        while waiting or self.scheduler.has_unfinished_requests():
            now = len(self.trail.steps)
            while waiting and waiting[0].step <= now:
                self._add(waiting.pop(0))
            for arrival in withdrawn:
                if arrival.withdrawn == now:
                    rows = [row for row in arrival.rows() if row in self.scheduler.requests]
                    self.scheduler.finish_requests(rows, RequestStatus.FINISHED_ABORTED)
            output = self.scheduler.schedule()
            self.trail.steps.append(self._follow(output))
            self.scheduler.update_from_output(output, self._answer(output))
        return self.trail

    def _add(self, arrival: Arrival) -> None:
        # Parallel samples are requests of their own in vLLM's core; the prefix cache is what they share by.
        for row, output in zip(arrival.rows(), arrival.outputs, strict=True):
            tokens = arrival.prompt + output
            self.chains[row] = digests(arrival.salt, tokens)
            self.outputs[row], self.prompts[row] = output, len(arrival.prompt)
            whole = self._request(row, tokens, arrival, 1)  # only to learn what vLLM calls its blocks
            for digest, key in zip(
                self.chains[row][self.stream.block_size - 1 :: self.stream.block_size], whole.block_hashes, strict=True
            ):
                self.hashes[key] = self.names[digest]
            self.scheduler.add_request(self._request(row, arrival.prompt, arrival, len(output)))

    def _request(self, row: str, tokens: tuple[int, ...], arrival: Arrival, max_tokens: int) -> Request:
        return Request(
            request_id=row,
            prompt_token_ids=list(tokens),
            sampling_params=SamplingParams(max_tokens=max_tokens, ignore_eos=True),
            pooling_params=None,
            arrival_time=float(arrival.step),
            priority=arrival.priority,
            cache_salt=arrival.salt,
            block_hasher=self.hasher,
        )

    def _follow(self, output: SchedulerOutput) -> Step:
        step = Step(preempted=self.scheduler.lost, evicted=self.evicted)
        self.scheduler.lost, self.evicted = [], []
        work = []
        resumed = output.scheduled_cached_reqs.resumed_req_ids
        for row, count in output.num_scheduled_tokens.items():
            start = self.scheduler.requests[row].num_computed_tokens - count
            table = self.scheduler.kv_cache_manager.get_block_ids(row)[0]
            work.append(Work(row, self.chains[row], start, count, table))
            step.chunks.append((row, start, count))
            if row not in self.seen:
                self.seen.add(row)
                step.admitted.append((row, start))
            elif row in resumed:
                step.resumed.append((row, start))
        step.stale = self.slots.compute(work)
        free = self.pool.free_block_queue.get_all_free_blocks()
        step.used = self.stream.num_blocks - len(free)
        step.cached = sum(block.block_hash is not None for block in free)
        return step

    def _answer(self, output: SchedulerOutput) -> ModelRunnerOutput:
        now = len(self.trail.steps) - 1
        rows = list(output.num_scheduled_tokens)
        sampled: list[list[int]] = []
        for row in rows:
            request = self.scheduler.requests[row]
            place = request.num_computed_tokens - self.prompts[row]
            if request.num_computed_tokens < request.num_tokens:
                sampled.append([])
                continue
            self.trail.first_token.setdefault(row, now)
            if place == len(self.outputs[row]) - 1:
                self.trail.finished[row] = now
            sampled.append([self.outputs[row][place]])
        return ModelRunnerOutput(
            req_ids=rows, req_id_to_index={row: i for i, row in enumerate(rows)}, sampled_token_ids=sampled
        )


def main() -> None:
    """Answer stdin on stdout; whatever vLLM prints itself goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    streams = [Stream.of(data) for data in json.load(sys.stdin)]
    init_none_hash(sha256)
    with tempfile.TemporaryDirectory() as model:
        Path(model, "config.json").write_text(json.dumps(MODEL))
        trails = [VllmSide(stream, model).run().as_dict() for stream in streams]
    versions = {
        "vllm": vllm.__version__,
        "torch (vLLM's)": torch.__version__,
        "python (vLLM's)": platform.python_version(),
    }
    json.dump({"versions": versions, "trails": trails}, answers)


if __name__ == "__main__":
    main()
