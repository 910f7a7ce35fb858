"""The options that several commands share: every field of EngineConfig and of SamplingParams, as flags.

A flag that is not given stays out of the object that is built, so defaults have one home. Each may also come from the
environment: ``--max-num-seqs`` from ``OCTAVO_MAX_NUM_SEQS``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any, NamedTuple

import typer

from octavo.config import (
    BATCHINGS,
    DEVICES,
    DTYPES,
    EVICTIONS,
    KERNELS,
    KV_CACHE_DTYPES,
    LINEAR_KINDS,
    POLICIES,
    PREEMPTIONS,
    QUANTIZATIONS,
    SPECULATIVE,
    VICTIMS,
    EngineConfig,
)
from octavo.errors import SamplingParamsError
from octavo.request import SamplingParams


class Flag(NamedTuple):
    """One option: its type on the command line, and what it says of itself."""

    type: Any
    help: str
    default: str | None = None  #: what holds without it, in words
    metavar: str | None = None
    names: tuple[str, ...] = ()  #: further spellings (``-m``), or another one (``--stop-token-id``)


def _one_of(choices: tuple[str, ...]) -> str:
    return "|".join(choices)


ENGINE: dict[str, Flag] = {
    "model": Flag(
        str, "A folder in Hugging Face layout, or a hub id.", "the bundled model of fairy tales", names=("-m",)
    ),
    "revision": Flag(str, "The hub revision: branch, tag or commit."),
    "tokenizer": Flag(str, "Another folder or hub id to take the tokenizer from."),
    "dtype": Flag(str, "Of weights, activations and KV memory.", metavar=_one_of(DTYPES)),
    "quantization": Flag(
        str, "Of weights, while they are loaded.", "none: as they are stored", metavar=_one_of(QUANTIZATIONS)
    ),
    "kv_cache_dtype": Flag(str, "Of KV memory; auto is --dtype.", metavar=_one_of(KV_CACHE_DTYPES)),
    "device": Flag(str, "Where to compute.", metavar=_one_of(DEVICES)),
    "kernels": Flag(str, "Which kernels compute.", metavar=_one_of(KERNELS)),
    "block_size": Flag(int, "Tokens that a block holds.", "16"),
    "num_blocks": Flag(int, "Blocks in the pool.", "as many as free memory and the largest batch can use"),
    "memory_utilization": Flag(float, "On a CPU: the share of free memory, after the weights, for the pool.", "0.5"),
    "gpu_memory_utilization": Flag(float, "On a GPU: the share of its memory that may be taken in all.", "0.9"),
    "max_num_seqs": Flag(int, "Sequences resident at once.", "64"),
    "max_num_batched_tokens": Flag(int, "Tokens computed in one step.", "2048"),
    "max_model_len": Flag(int, "Tokens of context served.", "the model's, or what fits"),
    "policy": Flag(str, "Who goes first.", metavar=_one_of(POLICIES)),
    "ageing_seconds": Flag(
        float, "Waiting so long weighs as one level under --policy priority, as 1,000 tokens under srpt.", "60"
    ),
    "victims": Flag(str, "Who loses memory when a block is short.", "rank", metavar=_one_of(VICTIMS)),
    "swap_space": Flag(float, "GiB of host memory for the blocks of preempted requests.", "0: none"),
    "host_cache": Flag(bool, "Let evicted prefixes wait in that memory too.", "off"),
    "preemption": Flag(str, "How a request gives up its memory.", metavar=_one_of(PREEMPTIONS)),
    "link_bandwidth": Flag(float, "Under --preemption auto: bytes a second to host memory and back.", "measured"),
    "compute_speed": Flag(float, "Under --preemption auto: FLOP a second of a prefill.", "measured"),
    "batching": Flag(str, "When waiting requests may join.", metavar=_one_of(BATCHINGS)),
    "prefix_caching": Flag(bool, "Keep freed blocks for later prompts that begin alike.", "on"),
    "eviction": Flag(str, "Which freed block is given up first.", metavar=_one_of(EVICTIONS)),
    "depth": Flag(int, "Plans in flight beside the one being built.", "1 on a GPU, 0 on a CPU"),
    "cuda_graphs": Flag(bool, "On a GPU: launch decode steps as graphs.", "on"),
    "speculative": Flag(str, "Guess tokens, and verify several in one step.", "off", metavar=_one_of(SPECULATIVE)),
    "speculative_tokens": Flag(int, "Guesses in one step at the most.", "15"),
    "ngram_min": Flag(int, "The fewest last tokens that a guess is made from.", "2"),
    "ngram_max": Flag(int, "The most last tokens that are looked for.", "4"),
    "row_cost": Flag(float, "What a further row adds to a step, as a share of it.", "measured"),
    "batch_invariant": Flag(bool, "Bit-equal results whoever shares the batch, at some cost.", "off"),
    "linear_kind": Flag(str, "How products with unquantised weights are done.", metavar=_one_of(LINEAR_KINDS)),
    "num_threads": Flag(int, "CPU threads.", "all"),
    "retained_requests": Flag(int, "Ended requests whose tokens are kept, to be forked.", "256"),
    "seed": Flag(int, "Keys the noise of requests without a seed of their own.", "0"),
}
"""A flag for each field of :class:`~octavo.config.EngineConfig`."""

SAMPLING: dict[str, Flag] = {
    "max_tokens": Flag(int, "New tokens at the most."),
    "min_tokens": Flag(int, "New tokens before anything may end the text.", "0"),
    "temperature": Flag(float, "0 is greedy decoding.", "the model's default, else 1"),
    "top_k": Flag(int, "Keep the k likeliest tokens; 0 keeps all."),
    "top_p": Flag(float, "Keep the smallest set of tokens whose probability reaches p."),
    "min_p": Flag(float, "Drop tokens less likely than so many times the likeliest."),
    "repetition_penalty": Flag(float, "Weakens tokens seen in prompt or output; 1 is none."),
    "presence_penalty": Flag(float, "Subtracted from the logit of a token already generated.", "0"),
    "frequency_penalty": Flag(float, "Subtracted for each time that a token was generated.", "0"),
    "seed": Flag(int, "The same seed draws the same noise, whoever shares the batch."),
    "n": Flag(int, "How many continuations of each prompt.", "1"),
    "best_of": Flag(int, "Grow so many and return the n likeliest."),
    "beam_width": Flag(int, "Beam search over so many beams.", "1: none"),
    "length_penalty": Flag(float, "A beam's score is its log-probability over its length to this power.", "1"),
    "early_stopping": Flag(bool, "End a beam search at once when enough beams are finished.", "off"),
    "stop": Flag(list[str], "A string that ends the text; may be given several times.", metavar="TEXT"),
    "include_stop_str_in_output": Flag(bool, "Keep the stop string in the text.", "off"),
    "stop_token_ids": Flag(
        list[int], "A token id that ends the text; several times.", metavar="ID", names=("--stop-token-id",)
    ),
    "ignore_eos": Flag(bool, "Do not stop at the model's end-of-sequence tokens.", "off"),
    "allowed_token_ids": Flag(
        list[int], "Draw no other tokens; several times.", metavar="ID", names=("--allowed-token-id",)
    ),
    "bad_words": Flag(
        list[str], "A string that must not be generated; several times.", metavar="TEXT", names=("--bad-word",)
    ),
    "logit_bias": Flag(list[str], "Add to a token's logit, for instance 42=-100; several times.", metavar="ID=BIAS"),
    "logprobs": Flag(int, "With --json: report each token's log-probability and so many alternatives."),
    "prompt_logprobs": Flag(int, "With --json: the same for the prompt (which then uses no cached prefix)."),
    "skip_special_tokens": Flag(bool, "Leave special tokens out of the text.", "on"),
}
"""A flag for each field of :class:`~octavo.request.SamplingParams`."""

Command = Callable[..., Any]


def engine_options(*only: str, **defaults: Any) -> Callable[[Command], Command]:
    """Give a command a flag for each field of EngineConfig; it receives the built ``config``.

    Args:
        only: the fields that this command has flags for [all].
        defaults: values that this command has where EngineConfig's own are not meant.
    """

    def build(values: dict[str, Any]) -> EngineConfig:
        return EngineConfig(**values)

    # Two seeds meet on one command line: the request's has the plain name.
    flags = {name: ENGINE[name] for name in only} if only else ENGINE
    return _options(flags, "config", build, defaults, renamed={"seed": "engine_seed"})


def sampling_options(*leave_out: str, **defaults: Any) -> Callable[[Command], Command]:
    """Give a command a flag for each field of SamplingParams but ``leave_out``; it receives the built ``params``."""

    def build(values: dict[str, Any]) -> SamplingParams:
        if "logit_bias" in values:
            values["logit_bias"] = _biases(values["logit_bias"])
        return SamplingParams(**values)

    flags = {name: flag for name, flag in SAMPLING.items() if name not in leave_out}
    return _options(flags, "params", build, defaults, renamed={})


def _biases(pairs: list[str]) -> dict[int, float]:
    biases = {}
    for pair in pairs:
        token, _, bias = pair.partition("=")
        try:
            biases[int(token)] = float(bias)
        except ValueError:
            raise SamplingParamsError(f"--logit-bias {pair!r} must be ID=BIAS, for instance 42=-100") from None
    return biases


def _options(
    flags: dict[str, Flag],
    built: str,
    build: Callable[[dict[str, Any]], object],
    defaults: dict[str, Any],
    renamed: dict[str, str],
) -> Callable[[Command], Command]:
    """Replace a command's parameter ``built`` by flags, out of which it is built."""
    panel = {"config": "Engine", "params": "Sampling"}[built]

    def decorate(command: Command) -> Command:
        own = [item for item in inspect.signature(command, eval_str=True).parameters.values() if item.name != built]
        added = [
            inspect.Parameter(
                f"{built}_{name}",
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=_annotation(renamed.get(name, name), flag, panel, defaults.get(name)),
            )
            for name, flag in flags.items()
        ]

        @wraps(command)
        def run(**values: Any) -> Any:
            given = {name: values.pop(f"{built}_{name}") for name in flags}
            given = {name: value for name, value in given.items() if value is not None and value != []}
            return command(**values, **{built: build({**defaults, **given})})

        run.__signature__ = inspect.Signature(own + added)  # type: ignore[attr-defined]
        run.__annotations__ = {item.name: item.annotation for item in own + added}
        return run

    return decorate


def _annotation(name: str, flag: Flag, panel: str, default: object) -> Any:
    spelled = "--" + name.replace("_", "-")
    names: tuple[str, ...] = (spelled, *flag.names)
    if flag.names and flag.names[0].startswith("--"):
        names = flag.names
    if flag.type is bool:
        names = (f"{spelled}/--no-{spelled[2:]}",)
    default = flag.default if default is None else default
    option = typer.Option(
        *names,
        help=flag.help if default is None else f"{flag.help} (default: {default})",
        metavar=flag.metavar,
        envvar=f"OCTAVO_{name.upper()}",
        show_default=False,
        show_envvar=False,
        rich_help_panel=panel,
    )
    return Annotated[flag.type | None, option]
