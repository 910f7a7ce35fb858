"""The shorthand: a model, and text out of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from octavo.config import EngineConfig
from octavo.engine.admission import Prompt, sampling_params
from octavo.engine.engine import Advance, LLMEngine
from octavo.errors import RequestError, UnsupportedError
from octavo.request import RequestOutput, SamplingParams

Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Delta:
    """What a stream has added to one of the request's outputs."""

    index: int  #: which output (0 unless ``n`` is more than 1)
    text: str
    token_ids: list[int]
    finished: bool
    finish_reason: str | None
    output: RequestOutput  #: the whole request as it stands


class LLM:
    """One model, with an engine of its own.

    Args:
        model: a folder, a hub id, or None for the bundled model.
        keywords: further fields of :class:`~octavo.config.EngineConfig`.

    Raises:
        ConfigError: a keyword is unknown or its value cannot be honoured.
        ModelError: the model cannot be found or used.
    """

    def __init__(self, model: str | None = None, **keywords: Any) -> None:
        self.engine = LLMEngine(EngineConfig(model=model, **keywords))

    @classmethod
    def over(cls, engine: LLMEngine) -> LLM:
        """The same face over an engine that exists already."""
        llm = cls.__new__(cls)
        llm.engine = engine
        return llm

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool | Advance = False,
        **keywords: Any,
    ) -> list[RequestOutput]:
        """Continue every prompt; see :meth:`LLMEngine.generate`."""
        return self.engine.generate(prompts, params, progress=progress, **keywords)

    def chat(
        self,
        messages: Messages | Sequence[Messages],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool | Advance = False,
        **keywords: Any,
    ) -> list[RequestOutput]:
        """Answer a conversation, or each of several, through the model's chat template.

        Args:
            messages: a list of ``{"role": ..., "content": ...}``, or a list of such lists.
            params, progress, keywords: as for :meth:`generate`.

        Raises:
            UnsupportedError: the model has no chat template.
            RequestError: the messages are malformed, or the result cannot be served.
        """
        return self.engine.generate(
            [self._render(each) for each in _conversations(messages)], params, progress=progress, **keywords
        )

    def stream(
        self, prompt: Prompt | Messages, params: SamplingParams | None = None, **keywords: Any
    ) -> Iterator[Delta]:
        """Yield the continuation of one prompt, or the answer to one conversation, as it is generated. Leaving the
        loop early withdraws the request.

        Raises:
            UnsupportedError: beams and ``best_of`` > ``n`` are known at the end only; use :meth:`generate`.
            RequestError: it cannot be served.
        """
        given = sampling_params(params, keywords)
        if given is not None and given.beam_width > 1:
            raise UnsupportedError("a beam search cannot be streamed, its text is known at the end: use generate()")
        if given is not None and given.best_of is not None and given.best_of > given.n:
            raise UnsupportedError(
                "best_of > n cannot be streamed, the choice is made at the end: use generate(), or leave best_of out"
            )
        if isinstance(prompt, Sequence) and len(prompt) and isinstance(prompt[0], Mapping):
            prompt = self._render(cast(Messages, prompt))
        name = self.engine.add_request(prompt, given)  # type: ignore[arg-type]
        return self._deltas(name)

    def close(self) -> None:
        """Give weights and memory back."""
        self.engine.close()

    def _render(self, messages: Messages) -> list[int]:
        return self.engine.tokenizer.apply_chat_template(messages)

    def _deltas(self, name: str) -> Iterator[Delta]:
        shown: dict[int, tuple[int, int]] = {}
        done: set[int] = set()
        engine = self.engine
        try:
            while True:
                outputs = engine.step()
                # At once: between two deltas the caller may step too, or read another stream.
                engine.keep_outputs(output for output in outputs if output.request_id != name)
                own = [output for output in outputs if output.request_id == name]
                for output in own:
                    for each in output.outputs:
                        characters, tokens = shown.get(each.index, (0, 0))
                        ended = each.finish_reason is not None
                        if each.index in done or (len(each.token_ids) == tokens and not ended):
                            continue
                        shown[each.index] = (len(each.text), len(each.token_ids))
                        if ended:
                            done.add(each.index)
                        yield Delta(
                            each.index,
                            each.text[characters:],
                            each.token_ids[tokens:],
                            ended,
                            each.finish_reason,
                            output,
                        )
                    if output.finished:
                        return
                if not own and name not in engine.scheduler.requests:
                    return  # somebody has withdrawn it
        finally:
            engine.withdraw({name})


def _conversations(messages: Messages | Sequence[Messages]) -> list[Messages]:
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence) or not messages:
        raise RequestError('messages must be a list of {"role": ..., "content": ...}, or a list of such lists')
    if isinstance(messages[0], Mapping):
        return [messages]  # type: ignore[list-item]
    return list(messages)  # type: ignore[arg-type]
