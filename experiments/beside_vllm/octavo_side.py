"""A stream through Octavo's scheduler and memory manager."""

from __future__ import annotations

from beside_vllm.slots import KvSlots, Work
from beside_vllm.stream import Arrival, Stream, block_names, digests
from beside_vllm.trail import Step, Trail
from octavo.config import SchedulerConfig
from octavo.plan import Chunk, ChunkResult, Sample, StepPlan, StepResult, Want
from octavo.request import Request, SamplingParams
from octavo.scheduler import Scheduler


class OctavoSide:
    """A scheduler, with an executor that knows every token beforehand and follows every slot."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.names = block_names(stream)
        self.scheduler = Scheduler(
            SchedulerConfig(
                num_blocks=stream.num_blocks,
                block_size=stream.block_size,
                max_num_seqs=stream.max_num_seqs,
                max_num_batched_tokens=stream.max_num_batched_tokens,
                policy=stream.policy,
                ageing_seconds=stream.ageing_seconds,
                prefix_caching=stream.prefix_caching,
            )
        )
        self.slots = KvSlots(stream.num_blocks, stream.block_size)
        self.tables: dict[int, list[int]] = {}  # by executor slot
        self.rows: dict[int, tuple[Arrival, int]] = {}  # sequence id -> its request, and which sample of it
        self.chains: dict[str, list[int]] = {}  # row -> digests
        self.by_name = {arrival.name: arrival for arrival in stream.arrivals}
        self.seen: set[str] = set()  # rows that have computed
        self.trail = Trail()

    def run(self) -> Trail:
        """Run the stream to its end."""
        waiting = sorted(self.stream.arrivals, key=lambda arrival: arrival.step)
        while waiting or self.scheduler.has_unfinished():
            now = len(self.trail.steps)
            while waiting and waiting[0].step <= now:
                self._add(waiting.pop(0))
            for name in list(self.scheduler.requests):
                if self.by_name[name].withdrawn == now:
                    self.scheduler.abort(name)
            plan = self.scheduler.schedule()
            self.trail.steps.append(self._follow(plan))
            self.scheduler.commit(plan, self._answer(plan))
        return self.trail

    def _add(self, arrival: Arrival) -> None:
        for row, output in zip(arrival.rows(), arrival.outputs, strict=True):
            self.chains[row] = digests(arrival.salt, arrival.prompt + output)
        (length,) = {len(output) for output in arrival.outputs}
        self.scheduler.add(
            Request(
                arrival.name,
                list(arrival.prompt),
                SamplingParams(n=len(arrival.outputs), max_tokens=length),
                priority=arrival.priority,
                arrival=float(arrival.step),
                salt=arrival.salt,
                max_new_tokens=length,
            )
        )

    def _row(self, seq_id: int) -> str:
        arrival, index = self.rows[seq_id]
        return arrival.rows()[index]

    def _follow(self, plan: StepPlan) -> Step:
        """Do with the slots what an executor does with memory, in its order, and write down what is seen."""
        step = Step(preempted=[self._row(seq_id) for seq_id in plan.preempted])
        step.evicted = [self.names[self.slots.content(block)] for block in plan.evicted]
        for slot in plan.released:
            del self.tables[slot]
        for copy in plan.copies:
            self.slots.copy(copy.source, copy.target)
        fresh = {init.seq_id for init in plan.init}
        for init in plan.init:
            self.tables[init.slot] = []
            self.rows[init.seq_id] = (self.by_name[init.request_id], init.index)
        work = []
        for chunk in plan.chunks:
            row = self._row(chunk.seq_id)
            self.tables[chunk.slot][chunk.blocks_from[0] :] = chunk.blocks[0]
            work.append(Work(row, self.chains[row], chunk.start, chunk.count, self.tables[chunk.slot]))
            step.chunks.append((row, chunk.start, chunk.count))
            if row not in self.seen:
                self.seen.add(row)
                step.admitted.append((row, chunk.start))
            elif chunk.seq_id in fresh:
                step.resumed.append((row, chunk.start))
        step.stale = self.slots.compute(work)
        memory = self.scheduler.memory.snapshot(self.scheduler.sequences())
        step.used, step.cached = memory.num_used, memory.num_cached
        return step

    def _answer(self, plan: StepPlan) -> StepResult:
        return StepResult(plan.step, tuple(self._result(chunk) for chunk in plan.chunks))

    def _result(self, chunk: Chunk) -> ChunkResult:
        if chunk.want is not Want.SAMPLE:
            return ChunkResult()
        arrival, _ = self.rows[chunk.seq_id]
        place = chunk.start + chunk.count - len(arrival.prompt)
        now = len(self.trail.steps) - 1
        for draw in chunk.draws:
            row = arrival.rows()[draw]
            self.trail.first_token.setdefault(row, now)
            if place == len(arrival.outputs[draw]) - 1:
                self.trail.finished[row] = now
        return ChunkResult(samples=tuple(Sample(arrival.outputs[draw][place]) for draw in chunk.draws))
