"""The nouns: what a user asks (:class:`SamplingParams`, :class:`Request`), the lines of tokens grown for it
(:class:`Sequence`), and what comes back (:class:`RequestOutput`)."""

from octavo.request.block_table import BlockTable
from octavo.request.noise_indexes import NoiseIndexes
from octavo.request.output import CompletionOutput, RequestMetrics, RequestOutput
from octavo.request.request import Request
from octavo.request.sampling_params import SamplingParams
from octavo.request.sequence import PrefixNode, Sequence
from octavo.request.state import FinishReason, SequenceState
from octavo.request.swapped import Swapped

__all__ = [
    "BlockTable",
    "CompletionOutput",
    "FinishReason",
    "NoiseIndexes",
    "PrefixNode",
    "Request",
    "RequestMetrics",
    "RequestOutput",
    "SamplingParams",
    "Sequence",
    "SequenceState",
    "Swapped",
]
