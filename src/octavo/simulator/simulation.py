"""A trace, a configuration and a machine put together."""

from __future__ import annotations

from collections.abc import Callable

from octavo.config import EngineConfig, SchedulerConfig
from octavo.errors import ConfigError
from octavo.plan import Executor, LayerGroup, ModelFacts, StepPlan
from octavo.scheduler import Scheduler
from octavo.simulator.checked_executor import CheckedExecutor
from octavo.simulator.contiguous_scheduler import ContiguousScheduler
from octavo.simulator.cost import Machine
from octavo.simulator.cost_executor import CostExecutor
from octavo.simulator.meter import Usage
from octavo.simulator.oracle import OracleExecutor
from octavo.simulator.prompt_tokens import PromptTokens
from octavo.simulator.replay import Recorder, Replay, paged_usage
from octavo.simulator.trace import Trace


def simulation(
    trace: Trace,
    config: EngineConfig,
    machine: Machine,
    *,
    check: bool = False,
    recorder: Recorder | None = None,
    watch: Callable[[float, float, float], None] | None = None,
) -> Replay:
    """A replay that is ready to run: the engine's own scheduler, with an executor that only knows what a plan costs.

    Args:
        trace: the load.
        config: the engine's; its ``num_blocks`` and ``max_model_len`` come from the machine where they are not set.
        machine: what a plan costs, and how much memory there is.
        check: have the KV oracle follow every plan, and audit the memory now and then. Slow.
        recorder: is given every plan.
        watch: is told, step by step, the moment and the shares of memory that are held and filled.

    Raises:
        ConfigError: no block fits the machine's memory, or the block size does not go with the trace's contents; or
            ``speculative`` is asked for: a trace does not say what was generated, so nobody knows what guesses are
            worth.
    """
    if config.speculative is not None:
        raise ConfigError(
            f"speculative={config.speculative!r} cannot be simulated: a trace holds no texts, so nobody knows how many "
            "guesses would come true; leave it out"
        )
    size = config.block_size
    if trace.num_contents and config.prefix_caching and trace.piece % size:
        raise ConfigError(
            f"block_size={size} does not divide the {trace.piece} tokens that a hash id of {trace.name} covers, so it "
            "is not known which blocks are equal: use a divisor, or prefix_caching=False"
        )
    tokens = PromptTokens(trace)
    facts = machine_facts(config, machine, tokens.vocab_size)
    scheduler = Scheduler(SchedulerConfig.of(config, facts))

    def token_of(request_id: str) -> int:
        return tokens.output(int(request_id))

    def audit() -> None:
        scheduler.memory.audit(scheduler.sequences())

    def usage() -> Usage:
        now = paged_usage(scheduler)
        if watch is not None:
            watch(replay.clock.now, now.held / now.capacity, now.filled / now.capacity)
        return now

    executor: Executor = _cost_executor(machine, facts, tokens)
    if check:
        oracle = OracleExecutor(
            facts.num_blocks,
            size,
            num_host_blocks=scheduler.config.num_host_blocks,
            vocab_size=facts.vocab_size,
            token_of=lambda init, index: token_of(init.request_id),
        )
        executor = CheckedExecutor(executor, oracle)
    replay = Replay(trace, scheduler, executor, usage, recorder=recorder, audit=audit if check else None)
    return replay


def contiguous_simulation(trace: Trace, config: EngineConfig, machine: Machine, rule: str) -> Replay:
    """The same replay on contiguous memory: see :class:`~octavo.simulator.contiguous_scheduler.ContiguousScheduler`.

    Raises:
        ConfigError: the rule is unknown, or memory holds nothing.
    """
    tokens = PromptTokens(trace)
    facts = machine_facts(config, machine, tokens.vocab_size)
    scheduler = ContiguousScheduler(SchedulerConfig.of(config, facts), rule)
    return Replay(trace, scheduler, _cost_executor(machine, facts, tokens), scheduler.usage)


def _cost_executor(machine: Machine, facts: ModelFacts, tokens: PromptTokens) -> CostExecutor:
    def seconds(plan: StepPlan) -> float:
        return machine.cost.seconds(plan, facts.page_bytes)

    return CostExecutor(facts, seconds, lambda request_id: tokens.output(int(request_id)))


def machine_facts(config: EngineConfig, machine: Machine, vocab_size: int) -> ModelFacts:
    """What a scheduler must know of the machine: the blocks that its memory holds, and the model's context."""
    page_bytes = machine.kv_token_bytes * config.block_size
    num_blocks = config.num_blocks if config.num_blocks is not None else machine.kv_bytes // page_bytes
    if num_blocks < 1:
        raise ConfigError(
            f"{machine.kv_bytes / 2**30:g} GiB hold no block of {config.block_size} tokens ({page_bytes:,} bytes): "
            "use smaller blocks or more memory"
        )
    length = min(config.max_model_len or machine.max_model_len, num_blocks * config.block_size)
    cost = machine.cost
    return ModelFacts(
        num_blocks=num_blocks,
        max_model_len=length,
        vocab_size=vocab_size,
        groups=(LayerGroup(machine.num_layers),),
        page_bytes=page_bytes,
        # So that the scheduler expects of a preemption what it will cost here.
        flops_per_token=machine.flops_per_token,
        attention_flops=machine.attention_flops,
        link_bandwidth=1 / cost.swapped_byte if cost.swapped_byte else 0.0,
        compute_speed=machine.flops_per_token / cost.prefill_token if cost.prefill_token else 0.0,
    )
