"""``octavo chat``: a conversation, line by line."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from octavo.cli.options import engine_options, sampling_options
from octavo.cli.terminal import LoadProgress, is_terminal, notes, read_line
from octavo.config import EngineConfig
from octavo.errors import PromptTooLongError, RequestError
from octavo.request import SamplingParams

if TYPE_CHECKING:
    from octavo.engine import LLM

MAX_TOKENS = 512
HELP = "/reset begins anew, /exit ends, Ctrl-C stops a reply"

Message = dict[str, str]


@engine_options()
@sampling_options("n", "best_of", "beam_width", "length_penalty", "early_stopping", "logprobs", "prompt_logprobs",
                  max_tokens=MAX_TOKENS)  # fmt: skip
def chat(
    config: EngineConfig,
    params: SamplingParams,
    system: Annotated[
        str | None, typer.Option("--system", help="What the model is told before the first turn.")
    ] = None,
) -> None:
    """Talk with a model through its chat template. Without a terminal each line of stdin is a turn."""
    from octavo.engine import LLM, LLMEngine

    with LoadProgress() as progress:
        engine = LLMEngine(config, progress=progress)
    with engine:
        for note in notes(engine.facts):
            print(note, file=sys.stderr)
        Conversation(LLM.over(engine), params, system).run()


class Conversation:
    """The turns so far, and the loop that adds to them."""

    def __init__(self, llm: LLM, params: SamplingParams, system: str | None) -> None:
        self.llm = llm
        self.params = params
        self.opening: list[Message] = [{"role": "system", "content": system}] if system else []
        self.turns: list[Message] = []
        self.interactive = sys.stdin.isatty() and is_terminal(sys.stdout)

    def run(self) -> None:
        """Read lines and answer them, until /exit or the end of the input."""
        self._render([{"role": "user", "content": "?"}])  # a model without a template is refused before the first line
        if self.interactive:
            print(HELP)
        while True:
            try:
                line = (read_line("\n> ") if self.interactive else input()).strip()
                if line == "/exit":
                    return
                self._answer(line)
            except EOFError:
                return
            except KeyboardInterrupt:
                if not self.interactive:
                    raise
                print("\n" + HELP)

    def _answer(self, line: str) -> None:
        if line == "/reset":
            self.turns.clear()
            print("(a new conversation)")
        elif line.startswith("/"):
            print(HELP)
        elif line:
            self._turn(line)

    def _turn(self, line: str) -> None:
        self.turns.append({"role": "user", "content": line})
        try:
            reply = self._reply()
        except (RequestError, KeyboardInterrupt) as error:  # interrupted before or after the reply itself
            self.turns.pop()
            if not self.interactive or isinstance(error, KeyboardInterrupt):
                raise
            print(f"({error})")
            return
        self.turns.append({"role": "assistant", "content": reply})

    def _reply(self) -> str:
        """Stream the answer to the turns so far. What no longer fits the context is forgotten, oldest turns first."""
        forgotten = 0
        while True:
            try:
                stream = self.llm.stream(self._render(self.turns), self.params)
                break
            except PromptTooLongError:
                if len(self.turns) < 3:
                    raise
                del self.turns[:2]
                forgotten += 2
        if forgotten:
            print(f"(the context is full: the oldest {forgotten} messages are forgotten)", file=sys.stderr)
        parts: list[str] = []
        try:
            for delta in stream:
                parts.append(delta.text)
                sys.stdout.write(delta.text)
                sys.stdout.flush()
        except KeyboardInterrupt:
            if not self.interactive:
                raise
            stream.close()  # type: ignore[attr-defined]
            sys.stdout.write(" (stopped)")
        sys.stdout.write("\n")
        sys.stdout.flush()
        return "".join(parts)

    def _render(self, turns: list[Message]) -> list[int]:
        return self.llm.engine.tokenizer.apply_chat_template(self.opening + turns)
