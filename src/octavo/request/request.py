"""What a user asks."""

from __future__ import annotations

from octavo.plan import SamplingSpec
from octavo.request.noise_indexes import NoiseIndexes
from octavo.request.sampling_params import SamplingParams
from octavo.request.sequence import Sequence


class Request:
    """What a user asked. The unit of rank, admission and preemption; its sequences are the unit of compute."""

    __slots__ = (
        "arrival",
        "failure",
        "finished_at",
        "first_index",
        "first_scheduled",
        "first_token",
        "hypotheses",
        "id",
        "last_run",
        "live",
        "max_new_tokens",
        "namespace",
        "noise",
        "num_accepted",
        "num_cached",
        "num_copies",
        "num_drafted",
        "num_preemptions",
        "num_shared",
        "num_slots",
        "num_swapped_in",
        "num_swapped_out",
        "params",
        "priority",
        "prompt",
        "prompt_logprobs",
        "prompt_token_ids",
        "rank",
        "salt",
        "seed",
        "sequences",
        "source",
        "spec",
        "stop_ids",
        "user",
    )

    def __init__(
        self,
        id: str,
        prompt_token_ids: list[int],
        params: SamplingParams,
        *,
        prompt: str | None = None,
        priority: int = 0,
        arrival: float = 0.0,
        user: str | None = None,
        salt: str | None = None,
        seed: int = 0,
        noise: NoiseIndexes | None = None,
        source: Sequence | None = None,
        max_new_tokens: int = 1,
        stop_ids: tuple[int, ...] = (),
        spec: SamplingSpec | None = None,
    ) -> None:
        self.id = id
        self.prompt = prompt
        self.prompt_token_ids = prompt_token_ids
        self.params = params
        self.priority = priority  # lower is more urgent, as in vLLM
        self.arrival = arrival
        self.user = user
        self.salt = salt
        self.seed = seed
        self.noise = noise or NoiseIndexes()  # shared with its forks
        self.first_index = self.noise.take(params.num_sequences)  # the noise index of its first sequence
        self.source = source  # a fork's: the sequence whose memory it shares if that is resident when it is admitted
        self.max_new_tokens = max_new_tokens  # params.max_tokens, cut to the context
        self.stop_ids = frozenset(stop_ids)  # end-of-sequence ids (unless ignored) and stop_token_ids
        self.spec = spec or SamplingSpec()
        self.rank: tuple[float, int] = (arrival, 0)
        self.namespace: tuple[str, str | None] = ("salt", salt)  # the root of its prefixes
        self.sequences: list[Sequence] = []  # in order of index; for a finished beam search, best first
        self.live: list[Sequence] = []  # those of them that still grow
        self.hypotheses: list[tuple[float, Sequence]] = []  # a beam search's finished beams, best first
        self.num_slots = params.num_sequences  # executor slots that it holds or has been promised
        self.failure: str | None = None  # why it ended in FinishReason.ERROR
        self.prompt_logprobs: list[dict[int, float] | None] | None = None
        self.num_cached = 0  # prompt tokens found in the prefix tree at first admission
        self.num_shared = 0  # blocks taken over from the prefix tree, a sibling or a fork's source
        self.num_copies = 0  # shared blocks copied because it wrote into them
        self.num_preemptions = 0
        self.num_swapped_out = 0  # blocks moved to host memory
        self.num_swapped_in = 0  # and back: fewer, where the prefix tree still had them
        self.num_drafted = 0  # tokens guessed and verified
        self.num_accepted = 0  # those of them that equalled the token drawn
        self.last_run = 0  # the number of its latest turn to compute, counted where victims are chosen by it
        self.first_scheduled: float | None = None
        self.first_token: float | None = None
        self.finished_at: float | None = None

    def __repr__(self) -> str:
        return f"Request(id={self.id!r}, prompt={len(self.prompt_token_ids)} tokens, sequences={len(self.sequences)})"
