"""What can be set, validated once, then frozen."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from octavo.errors import ConfigError
from octavo.plan import LayerGroup, ModelFacts
from octavo.presets import PRESETS

BUNDLED_MODEL = "tales"
"""The name of the model that comes with the package; also what ``model=None`` means."""

DTYPES = ("auto", "float32", "bfloat16", "float16")
KV_CACHE_DTYPES = ("auto", "int8")
QUANTIZATIONS = ("int8", "int4")
PREEMPTIONS = ("auto", "swap", "recompute")
POLICIES = ("fcfs", "priority", "srpt", "fair")
VICTIMS = ("rank", "lru", "none")
BATCHINGS = ("continuous", "static")
EVICTIONS = ("lru", "fifo", "lfu", "arc", "prefix")
KERNELS = ("auto", "reference", "cpu", "triton")
LINEAR_KINDS = ("auto", "measure", "plain", "packed", "panels")
DEVICES = ("auto", "cpu", "cuda")
SPECULATIVE = ("ngram",)

GPU_KERNELS = ("auto", "triton")
GPU_SERVES = {"quantization": (None,), "linear_kind": ("auto", "plain")}
"""Fields of which a GPU serves these values alone."""

MOST_SWAP_SPACE = 65_536
"""GiB; whoever asks for more meant another unit."""

LINK_BANDWIDTH = 12e9
"""Bytes a second between device and host memory where nobody measured or set it: what a PCIe 3.0 x16 link brings, and
one core's copying within a machine's memory comes to much the same."""

COMPUTE_SPEED = 1e12
"""FLOP a second of a prefill where nobody measured or set it: a server's CPU. (A GPU's is a hundred times that.)"""

STEP_COSTS = (1.0, 1.05)
"""What steps of one row and of two take where nobody measured it: a model's weights are read once for both."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Everything that can be set about an engine.

    Args:
        model: a folder in Hugging Face layout, a hub id, or None for the bundled model of fairy tales.
        revision: the hub revision (branch, tag or commit) for every file fetched.
        tokenizer: another folder or hub id to take the tokenizer from [the model's].
        dtype: of weights, activations and KV memory; "auto" takes the checkpoint's where the machine computes in it
            at speed, float32 otherwise.
        quantization: of weights: "int8" makes each matrix, embeddings and head too, 8 bits with a scale for each
            output while it is loaded, and multiplies by activations that are rounded to 8 bits row by row (attention's
            output matrix stays bfloat16 where the CPU has a matrix unit for it, unless ``batch_invariant``); "int4"
            makes it 4 bits with a scale for each 64 inputs of an output, but embeddings and head 8 [none: a matrix is
            computed with as it is stored].
        kv_cache_dtype: of keys and values in memory: "auto" is ``dtype``, "int8" stores them in 8 bits with a scale
            for each token and KV head.
        device: "cpu", "cuda" (one NVIDIA GPU), or "auto": the GPU where there is one and nothing else here asks for
            what only a CPU serves.
        kernels: "reference" (plain torch, slow and plain to read), "cpu" (Numba), "triton" (a GPU's), or "auto" for the
            device's fastest.
        block_size: tokens a block holds.
        num_blocks: blocks in the pool [as many as free memory and the largest batch can use].
        memory_utilization: the share of free memory, after the weights, that the pool may take on a CPU.
        gpu_memory_utilization: the share of a GPU's memory that may be taken, by everybody together: weights, the
            largest step, graphs, the pool, and what other processes hold.
        max_num_seqs: sequences resident at once.
        max_num_batched_tokens: tokens computed in one step (prefill chunks are cut to it).
        max_model_len: tokens of context served [the model's, or what fits the pool].
        policy: who goes first: "fcfs" (first come), "priority" (lower number first), "srpt" (least remaining work
            first), or "fair" (the user first who was served least).
        ageing_seconds: waiting for so long weighs as much as one level of priority (under "priority"), or as 1,000
            tokens of work (under "srpt").
        victims: who loses memory when a block is short: "rank" (who ranks below the one that needs it), "lru" (who
            computed least recently; nobody is preempted to admit another), or "none" (nobody: the request that needs
            it fails, and requests are admitted without a look at memory). The latter two are there to compare with.
        swap_space: GiB of host memory for the blocks of preempted requests; 0 for none.
        host_cache: let cached blocks that are evicted from the device wait in that memory too, as long as no preempted
            request needs it, and come back when a prompt begins with them (models whose layers all keep the whole
            context).
        preemption: how a request gives up its memory: "swap" moves its blocks to host memory (while that has room),
            "recompute" drops them, "auto" does what is expected to take less time, request by request.
        link_bandwidth: bytes a second between device and host memory, for that choice [measured].
        compute_speed: FLOP a second of a prefill, for that choice [measured].
        batching: "continuous", or "static" (nobody is admitted until the batch drains), to compare with.
        prefix_caching: keep freed blocks for later prompts that begin alike.
        eviction: which freed block is given up first when room is needed: "lru" (least recently used), "fifo", "lfu"
            (least frequently used), "arc" (adaptive replacement), or "prefix" (cost to recompute times chance of
            reuse).
        depth: plans in flight beside the one being built; 0 plans, runs, commits in turn [1 on a GPU, 0 on a CPU].
        cuda_graphs: launch decode steps on a GPU as graphs, captured when a batch size first comes up.
        speculative: "ngram" guesses the tokens to come from what came next where the text's last tokens stood before,
            in the prompt or in the output, and verifies several at once; what is generated does not change by it.
        speculative_tokens: guesses in one step at the most; how many there are follows from how often they come true
            and from what a row costs.
        ngram_min: the fewest last tokens that must have stood together before.
        ngram_max: the most that are looked for; the longer match counts.
        row_cost: what each further row adds to a step of one row, as a share of it, for that choice [measured].
        batch_invariant: bit-equal results whoever shares the batch (pads products, splits attention by context only).
        linear_kind: how products with weights that are not quantised are done: "plain" (PyTorch's), "packed" (oneDNN's
            packed weights) or "panels" (Octavo's own), for every shape that the kind serves; "auto" takes what was
            measured to be the fastest for each shape, at an earlier start or at this one; "measure" measures anew.
        num_threads: CPU threads [``OMP_NUM_THREADS``, or one for each core].
        seed: keys the noise of requests that bring no seed of their own.
        retained_requests: requests that have ended whose tokens are kept, so that they can be forked; 0 keeps none.

    Raises:
        ConfigError: a value cannot be honoured, or a keyword is unknown; the message names the field.
    """

    model: str | None = None
    revision: str | None = None
    tokenizer: str | None = None
    dtype: str = "auto"
    quantization: str | None = None
    kv_cache_dtype: str = "auto"
    device: str = "auto"
    kernels: str = "auto"
    block_size: int = 16
    num_blocks: int | None = None
    memory_utilization: float = 0.5
    gpu_memory_utilization: float = 0.9
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 2048
    max_model_len: int | None = None
    policy: str = "fcfs"
    ageing_seconds: float = 60.0
    swap_space: float = 0.0
    host_cache: bool = False
    preemption: str = "auto"
    link_bandwidth: float | None = None
    compute_speed: float | None = None
    victims: str = "rank"
    batching: str = "continuous"
    prefix_caching: bool = True
    eviction: str = "lru"
    depth: int | None = None
    cuda_graphs: bool = True
    speculative: str | None = None
    speculative_tokens: int = 15
    ngram_min: int = 2
    ngram_max: int = 4
    row_cost: float | None = None
    batch_invariant: bool = False
    linear_kind: str = "auto"
    num_threads: int | None = None
    seed: int = 0
    retained_requests: int = 256

    def __new__(cls, *args: Any, **keywords: Any) -> EngineConfig:
        """Refuse unknown keywords with the nearest known name."""
        for name in keywords:
            if name not in cls.__slots__:
                raise ConfigError(unknown_keyword("EngineConfig", name, list(cls.__slots__)))
        return object.__new__(cls)

    @classmethod
    def preset(cls, name: str, **more: Any) -> EngineConfig:
        """One of the ladder's configurations (``v1-naive``, ``v2-lru``, ``v3-priority``, ``v4-prefix``), with ``more``
        fields over it.

        Raises:
            ConfigError: there is no such preset, or a field cannot be honoured.
        """
        _choice("preset", name, tuple(PRESETS))
        return cls(**(PRESETS[name] | more))

    def __post_init__(self) -> None:
        if isinstance(self.model, Path):
            object.__setattr__(self, "model", str(self.model))
        for name in ("model", "revision", "tokenizer"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or not value):
                raise ConfigError(f"{name} must be a non-empty string, not {value!r}")
        _choice("dtype", self.dtype, DTYPES)
        if self.quantization is not None:
            _choice("quantization", self.quantization, QUANTIZATIONS)
        _choice("kv_cache_dtype", self.kv_cache_dtype, KV_CACHE_DTYPES)
        _choice("device", self.device, DEVICES)
        _choice("kernels", self.kernels, KERNELS)
        _choice("linear_kind", self.linear_kind, LINEAR_KINDS)
        _choice("policy", self.policy, POLICIES)
        _choice("preemption", self.preemption, PREEMPTIONS)
        _choice("victims", self.victims, VICTIMS)
        _choice("batching", self.batching, BATCHINGS)
        _choice("eviction", self.eviction, EVICTIONS)
        if self.speculative is not None:
            _choice("speculative", self.speculative, SPECULATIVE)
        _integer("speculative_tokens", self.speculative_tokens, 1, 127)
        _integer("ngram_max", self.ngram_max, 1, 64)
        _integer("ngram_min", self.ngram_min, 1, self.ngram_max)
        if self.row_cost is not None and (not _is_number(self.row_cost) or self.row_cost < 0):
            raise ConfigError(f"row_cost={self.row_cost!r} must be a number of 0 or more, or None to measure it")
        _integer("block_size", self.block_size, 1, 4096)
        _integer("num_blocks", self.num_blocks, 1, 2**31 - 1, optional=True)
        _integer("max_num_seqs", self.max_num_seqs, 1, 65_536)
        _integer("max_num_batched_tokens", self.max_num_batched_tokens, 1, 2**24)
        _integer("max_model_len", self.max_model_len, 2, 2**31 - 1, optional=True)
        _integer("depth", self.depth, 0, 1, optional=True)
        _integer("num_threads", self.num_threads, 1, 4096, optional=True)
        _integer("retained_requests", self.retained_requests, 0, 2**20)
        _integer("seed", self.seed, -(2**63), 2**64 - 1)
        _fraction("memory_utilization", self.memory_utilization)
        _fraction("gpu_memory_utilization", self.gpu_memory_utilization)
        if not _is_number(self.ageing_seconds) or self.ageing_seconds <= 0:
            raise ConfigError(f"ageing_seconds={self.ageing_seconds!r} must be a positive number of seconds")
        if not _is_number(self.swap_space) or not 0 <= self.swap_space <= MOST_SWAP_SPACE:
            raise ConfigError(
                f"swap_space={self.swap_space!r} must be a number of GiB from 0 (none) to {MOST_SWAP_SPACE:,}"
            )
        for name in ("link_bandwidth", "compute_speed"):
            value = getattr(self, name)
            if value is not None and (not _is_number(value) or value <= 0):
                raise ConfigError(f"{name}={value!r} must be a positive number a second, or None to measure it")
        for name in ("prefix_caching", "host_cache", "batch_invariant", "cuda_graphs"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} must be True or False, not {getattr(self, name)!r}")
        if self.host_cache and not (self.swap_space and self.prefix_caching):
            raise ConfigError("host_cache=True needs host memory (swap_space above 0) and prefix_caching=True")
        self._check_device()

    def _check_device(self) -> None:
        """What no machine can serve; whether there is a GPU is found out where torch is."""
        if self.device == "cpu" and self.kernels == "triton":
            raise ConfigError("kernels='triton' computes on a GPU: use device='cuda', or kernels='auto'")
        if self.device != "cuda":
            return
        if self.kernels not in GPU_KERNELS:
            known = ", ".join(GPU_KERNELS)
            raise ConfigError(f"kernels={self.kernels!r} does not compute on a GPU: use one of {known}")
        for name, value in self.cpu_only():
            raise ConfigError(f"{name}={value!r} is served on a CPU only: leave it out, or use device='cpu'")

    def cpu_only(self) -> list[tuple[str, object]]:
        """The fields, and their values, that ask for what is not served on a GPU."""
        asked = [(name, getattr(self, name)) for name in GPU_SERVES]
        return [(name, value) for name, value in asked if value not in GPU_SERVES[name]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """Every number that ``schedule()`` reads; the run log's header holds it."""

    num_blocks: int
    block_size: int = 16
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 2048
    max_model_len: int = 2**31 - 1
    policy: str = "fcfs"
    ageing_seconds: float = 60.0
    victims: str = "rank"
    batching: str = "continuous"
    prefix_caching: bool = True
    eviction: str = "lru"
    depth: int = 0
    speculative: str | None = None
    speculative_tokens: int = 15
    ngram_min: int = 2
    ngram_max: int = 4
    step_costs: tuple[float, ...] = STEP_COSTS  #: of steps of 1, 2, 4, ... rows, relative to the first
    groups: tuple[LayerGroup, ...] = (LayerGroup(1),)
    host_cache: bool = False
    num_host_blocks: int = 0  #: pages of host memory for swapped blocks
    preemption: str = "auto"
    page_bytes: int = 0
    flops_per_token: float = 0.0  #: to put one token through the layers, attention left out
    attention_flops: float = 0.0  #: for one token to attend to one position in one layer
    link_bandwidth: float = LINK_BANDWIDTH  #: bytes a second between device and host memory
    compute_speed: float = COMPUTE_SPEED  #: FLOP a second of a prefill

    @classmethod
    def of(cls, config: EngineConfig, facts: ModelFacts) -> SchedulerConfig:
        """The scheduler's part of an engine's configuration, with what the executor found out.

        Raises:
            ConfigError: the two do not go together; the message names the field.
        """
        if config.host_cache and any(group.window is not None for group in facts.groups):
            raise ConfigError("host_cache=True is not for models with sliding windows: leave it off")
        return cls(
            num_blocks=facts.num_blocks,
            block_size=config.block_size,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            max_model_len=facts.max_model_len,
            policy=config.policy,
            ageing_seconds=config.ageing_seconds,
            victims=config.victims,
            batching=config.batching,
            prefix_caching=config.prefix_caching,
            eviction=config.eviction,
            depth=facts.depth if config.depth is None else config.depth,
            speculative=config.speculative,
            speculative_tokens=config.speculative_tokens,
            ngram_min=config.ngram_min,
            ngram_max=config.ngram_max,
            step_costs=step_costs(config.row_cost) or facts.step_costs or STEP_COSTS,
            groups=facts.groups,
            host_cache=config.host_cache,
            num_host_blocks=host_blocks(config.swap_space, facts.page_bytes),
            preemption=config.preemption,
            page_bytes=facts.page_bytes,
            flops_per_token=facts.flops_per_token,
            attention_flops=facts.attention_flops,
            link_bandwidth=config.link_bandwidth or facts.link_bandwidth or LINK_BANDWIDTH,
            compute_speed=config.compute_speed or facts.compute_speed or COMPUTE_SPEED,
        )

    def as_dict(self) -> dict[str, object]:
        """Plain data for the run log's header."""
        return asdict(self)


def step_costs(row_cost: float | None) -> tuple[float, ...]:
    """What steps of 1, 2, 4, ... rows take where each further row adds ``row_cost`` of the first one; () for None."""
    return () if row_cost is None else (1.0, 1.0 + row_cost)


def host_blocks(swap_space: float, page_bytes: int) -> int:
    """How many pages ``swap_space`` GiB are.

    Raises:
        ConfigError: it is not zero, and less than one page.
    """
    if not swap_space:
        return 0
    count = int(swap_space * 2**30) // page_bytes if page_bytes else 0
    if not count:
        raise ConfigError(f"swap_space={swap_space} GiB is less than one block of {page_bytes} bytes: raise it, or 0")
    return count


def unknown_keyword(owner: str, name: str, known: list[str]) -> str:
    """The sentence that refuses a keyword, with the nearest known name."""
    import difflib

    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
    return f"{owner} has no field {name!r}; {hint}"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{name}={value!r} is unknown: use one of {', '.join(choices)}")


def _integer(name: str, value: object, low: int, high: int, *, optional: bool = False) -> None:
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{name} must be an integer, not {value!r}")
    if not low <= value <= high:
        raise ConfigError(f"{name}={value} is out of range: use {low} to {high}")


def _fraction(name: str, value: object) -> None:
    if not _is_number(value) or not 0.0 < value <= 1.0:  # type: ignore[operator]
        raise ConfigError(f"{name}={value!r} must be above 0 and at most 1")
