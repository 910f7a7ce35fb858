"""``octavo generate``: prompts in, text out."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from octavo.cli.options import engine_options, sampling_options
from octavo.cli.terminal import LoadProgress, is_terminal, notes
from octavo.config import EngineConfig
from octavo.errors import RequestError
from octavo.request import RequestOutput, SamplingParams

if TYPE_CHECKING:
    from octavo.engine import EngineStats, LLMEngine

MAX_TOKENS = 256


@engine_options()
@sampling_options(max_tokens=MAX_TOKENS)
def generate(
    config: EngineConfig,
    params: SamplingParams,
    prompts: Annotated[
        list[str] | None, typer.Argument(metavar="PROMPT", help="Texts to go on with; - reads stdin.")
    ] = None,
    file: Annotated[
        str | None, typer.Option("--file", "-f", metavar="PATH", help="A file with one prompt a line; - reads stdin.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object a line: prompt, text, token_ids, finish_reason.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")] = False,
) -> None:
    """Continue prompts, all of them at once."""
    texts = _read_prompts(prompts or [], file)
    if not as_json and (params.logprobs is not None or params.prompt_logprobs is not None):
        raise RequestError("--logprobs and --prompt-logprobs are shown by --json only: add it, or leave them out")
    from octavo.engine import LLMEngine

    with LoadProgress(quiet) as progress:
        engine = LLMEngine(config, progress=progress)
    with engine:
        if not quiet:
            for note in notes(engine.facts):
                print(note, file=sys.stderr)
        if not as_json and len(texts) == 1 and params.num_sequences == 1 and is_terminal(sys.stdout):
            _stream(engine, texts[0], params)
            outputs = []
        else:
            outputs = engine.generate(texts, params, progress=not quiet)
        if config.speculative is not None and not quiet:
            print(_guesses(engine.stats()), file=sys.stderr)
    for output in outputs:
        (_print_json if as_json else _print_text)(output)


def _read_prompts(prompts: list[str], file: str | None) -> list[str]:
    """What the command line, the file and stdin give, in this order."""
    texts: list[str] = []
    for prompt in prompts:
        texts += _lines(sys.stdin.read()) if prompt == "-" else [prompt]
    if file == "-":
        texts += _lines(sys.stdin.read())
    elif file is not None:
        try:
            texts += _lines(Path(file).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise RequestError(f"--file {file} cannot be read: {error}") from None
    if not texts:
        raise RequestError("no prompt: give one, or --file PATH with one a line, or - to read stdin")
    return texts


def _lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]


def _stream(engine: LLMEngine, prompt: str, params: SamplingParams) -> None:
    """One prompt on a terminal: show the text as it grows."""
    from octavo.engine import LLM

    sys.stdout.write(prompt)
    for delta in LLM.over(engine).stream(prompt, params):
        sys.stdout.write(delta.text)
        sys.stdout.flush()
    sys.stdout.write("\n")


def _guesses(stats: EngineStats) -> str:
    """How speculation fared."""
    drafted, accepted = stats.num_drafted_tokens, stats.num_accepted_tokens
    share = f" ({accepted / drafted:.0%})" if drafted else ""
    return f"{accepted:,} of {drafted:,} guessed tokens came true{share}; {stats.num_steps:,} steps"


def _print_text(output: RequestOutput) -> None:
    for each in output.outputs:
        print(f"{output.prompt}{each.text}\n", flush=True)


def _print_json(output: RequestOutput) -> None:
    for each in output.outputs:
        row: dict[str, Any] = {
            "prompt": output.prompt,
            "text": each.text,
            "token_ids": each.token_ids,
            "finish_reason": each.finish_reason,
        }
        if len(output.outputs) > 1:
            row["index"] = each.index
        if each.stop_reason is not None:
            row["stop_reason"] = each.stop_reason
        if each.logprobs is not None:
            row["logprobs"] = each.logprobs
            row["cumulative_logprob"] = each.cumulative_logprob
        if output.prompt_logprobs is not None:
            row["prompt_logprobs"] = output.prompt_logprobs
        print(json.dumps(row, ensure_ascii=False), flush=True)
