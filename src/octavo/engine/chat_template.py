"""Conversations to prompts, by the Jinja template that comes with a model."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo.errors import RequestError, UnsupportedError, UnsupportedModelError

if TYPE_CHECKING:
    from jinja2 import Template

MAX_SECONDS = 5.0
"""How long a template may run."""

MAX_CHARACTERS = 16_000_000
"""How much text a template may make, in all and of any one value."""

_RESERVED = ("messages", "tools", "documents", "add_generation_prompt")


class ChatTemplate:
    """A model's chat template, run in Jinja's sandbox as Hugging Face's tools run it.

    The template comes with the model and is no more trusted than its weights: it sees plain data only, cannot
    change it, and is stopped when it runs for :data:`MAX_SECONDS` or makes more than :data:`MAX_CHARACTERS`.

    Args:
        sources: template text by name; "default" is used, or "tool_use" where tools are given and it exists.
        special_tokens: ``bos_token`` and the like, which templates write by name.
        origin: the file named in messages.
    """

    def __init__(
        self,
        sources: Mapping[str, str] | str,
        special_tokens: Mapping[str, str] | None = None,
        origin: str = "template",
    ) -> None:
        self.sources = {"default": sources} if isinstance(sources, str) else dict(sources)
        self.special_tokens = dict(special_tokens or {})
        self.origin = origin
        self._compiled: dict[str, Template] = {}

    @classmethod
    def load(cls, folder: Path, config: Mapping[str, Any], special_tokens: Mapping[str, str]) -> ChatTemplate | None:
        """The template of a model folder: ``chat_template.jinja`` and ``additional_chat_templates/*.jinja`` where
        they exist, else ``chat_template`` of tokenizer_config.json (a string, or a list of named ones); None where
        there is none.

        Raises:
            UnsupportedModelError: the configuration holds something else.
        """
        files: dict[str, Path] = {}
        if (folder / "chat_template.jinja").is_file():
            files["default"] = folder / "chat_template.jinja"
        for place in sorted((folder / "additional_chat_templates").glob("*.jinja")):
            files[place.stem] = place
        if files:
            sources = {name: place.read_text(encoding="utf-8") for name, place in files.items()}
            return cls(sources, special_tokens, str(next(iter(files.values()))))
        origin = folder / "tokenizer_config.json"
        given = config.get("chat_template")
        if given is None:
            return None
        if isinstance(given, list) and all(isinstance(item, Mapping) for item in given):
            given = {str(item.get("name")): item.get("template") for item in given}
        if isinstance(given, str):
            given = {"default": given}
        if not isinstance(given, Mapping) or not all(isinstance(text, str) for text in given.values()):
            raise UnsupportedModelError(f"{origin}: chat_template must be a string or a list of name and template")
        return cls(given, special_tokens, str(origin))

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> str:
        """The text of a conversation.

        Args:
            messages: ``{"role": ..., "content": ...}``, oldest first; content is a string, or a list of text parts.
            add_generation_prompt: end with the opening of the assistant's reply.
            tools: JSON schemas of functions, for templates that know them.
            variables: further names for the template, for instance ``enable_thinking=False``; they cannot take the
                place of the arguments above.

        Raises:
            RequestError: a message is malformed, or the template refuses the conversation.
            UnsupportedError: a message holds an image or the like.
            UnsupportedModelError: the template is not valid Jinja, or does not come to an end.
        """
        import jinja2

        for name in _RESERVED:
            if name in variables:
                raise RequestError(f"{name!r} cannot be given as a template variable")
        chat = _checked(messages)
        names = {
            **self.special_tokens,
            **{name: _plain(value, name) for name, value in variables.items()},
            "messages": chat,
            "tools": None if tools is None else _plain(list(tools), "tools"),
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        template = self._template("tool_use" if tools is not None and "tool_use" in self.sources else "default")
        watch = _Watch(MAX_SECONDS, MAX_CHARACTERS)
        try:
            return "".join(watch.over(template.generate(names | {"_watch": watch})))
        except _ExceededError as error:
            raise UnsupportedModelError(f"{self.origin}: the chat template was stopped: {error}") from None
        except jinja2.TemplateError as error:
            raise RequestError(f"the model's chat template refuses these messages: {error.message or error}") from None
        except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError, RecursionError) as error:
            raise RequestError(f"the model's chat template fails on these messages: {error}") from None

    def _template(self, name: str) -> Template:
        import jinja2

        if name not in self._compiled:
            if name not in self.sources:
                known = ", ".join(sorted(self.sources))
                raise UnsupportedError(f"{self.origin} has no template named {name!r}, only {known}")
            try:
                self._compiled[name] = self._environment.from_string(self.sources[name])
            except jinja2.TemplateSyntaxError as error:
                raise UnsupportedModelError(
                    f"{self.origin}: the chat template is not valid at line {error.lineno}: {error.message}"
                ) from None
        return self._compiled[name]

    @cached_property
    def _environment(self) -> Any:
        return _environment()


def _checked(messages: object) -> list[dict[str, Any]]:
    """The messages as plain data of their own, so that nothing a template does reaches the caller's."""
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise RequestError('messages must be a list of {"role": ..., "content": ...}')
    if not messages:
        raise RequestError("messages is empty: give at least one message")
    chat = []
    for place, message in enumerate(messages):
        where = f"messages[{place}]"
        if not isinstance(message, Mapping):
            raise RequestError(f"{where} must be a mapping with role and content, not {type(message).__name__}")
        role = message.get("role")
        if not isinstance(role, str) or not role:
            raise RequestError(f'{where}.role must be a string such as "user", not {role!r}')
        plain = _plain(message, where)
        content = plain.get("content")
        if content is None and not plain.get("tool_calls"):
            raise RequestError(f"{where}.content is missing")
        if isinstance(content, list):
            plain["content"] = "\n".join(_text_of(part, f"{where}.content[{i}]") for i, part in enumerate(content))
        elif content is not None and not isinstance(content, str):
            raise RequestError(f"{where}.content must be a string, not {type(content).__name__}")
        chat.append(plain)
    return chat


def _text_of(part: object, where: str) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping):
        raise RequestError(f'{where} must be a string or {{"type": "text", "text": ...}}')
    if part.get("type", "text") != "text":
        raise UnsupportedError(f"{where} is of type {part.get('type')!r}: only text is understood")
    text = part.get("text")
    if not isinstance(text, str):
        raise RequestError(f"{where}.text must be a string")
    return text


def _plain(value: Any, where: str, depth: int = 0) -> Any:
    """A copy made of JSON's types alone: objects with methods could reach out of the sandbox."""
    if depth > 64:
        raise RequestError(f"{where} is nested too deeply")
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Mapping):
        return {_plain(key, where, depth + 1): _plain(item, f"{where}.{key}", depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{place}]", depth + 1) for place, item in enumerate(value)]
    raise RequestError(f"{where} must be plain data (strings, numbers, lists, mappings), not {type(value).__name__}")


class _ExceededError(Exception):
    """A template went over a limit. No subclass of what templates' own failures raise."""


class _Watch:
    """The limits of one rendering."""

    def __init__(self, seconds: float, characters: int) -> None:
        self.seconds = seconds
        self.characters = characters
        self.deadline = time.monotonic() + seconds

    def tick(self) -> str:
        """Called in every turn of a loop and every call of a macro; adds nothing to the text."""
        if time.monotonic() > self.deadline:
            raise _ExceededError(f"it ran for more than {self.seconds:g} seconds")
        return ""

    def join(self, *values: object) -> str:
        """The ``~`` operator."""
        texts = [str(value) for value in values]
        if sum(map(len, texts)) > self.characters:
            raise _ExceededError("a value made by '~' is too large")
        return "".join(texts)

    def over(self, chunks: Iterator[str]) -> Iterator[str]:
        """Pass the text on, counted."""
        total = 0
        for chunk in chunks:
            total += len(chunk)
            if total > self.characters:
                raise _ExceededError(f"it made more than {self.characters:,} characters")
            self.tick()
            yield chunk


def _environment() -> Any:
    """The names and settings that Hugging Face's templates are written for, in an immutable sandbox."""
    import jinja2
    import jinja2.ext
    import jinja2.nodes
    import jinja2.sandbox
    from jinja2.visitor import NodeTransformer

    class Watched(NodeTransformer):
        """Puts ``_watch.tick()`` at the head of every loop's and macro's body, and ``_watch.join`` for ``~``."""

        def visit_For(self, node: jinja2.nodes.For) -> jinja2.nodes.Node:  # noqa: N802
            return self._ticking(node)

        def visit_Macro(self, node: jinja2.nodes.Macro) -> jinja2.nodes.Node:  # noqa: N802
            return self._ticking(node)

        def _ticking(self, node: Any) -> jinja2.nodes.Node:
            self.generic_visit(node)
            tick = self._call("tick", [])
            node.body.insert(0, jinja2.nodes.ExprStmt(tick).set_lineno(node.lineno))
            return node.set_environment(node.environment)  # type: ignore[no-any-return]

        def visit_Concat(self, node: Any) -> jinja2.nodes.Node:  # noqa: N802
            self.generic_visit(node)
            join = self._call("join", node.nodes)
            return join.set_lineno(node.lineno).set_environment(node.environment)

        def _call(self, method: str, arguments: list[Any]) -> jinja2.nodes.Call:
            named = jinja2.nodes.Getitem(jinja2.nodes.ContextReference(), jinja2.nodes.Const("_watch"), "load")
            return jinja2.nodes.Call(jinja2.nodes.Getattr(named, method, "load"), arguments, [], None, None)

    class Generation(jinja2.ext.Extension):
        """``{% generation %}`` marks the assistant's words for training; here it is transparent."""

        tags = {"generation"}  # noqa: RUF012 (Jinja reads it so)

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.Scope(body).set_lineno(line)

    class Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset(["*", "**", "+", "%"])

        def _parse(self, source: str, name: str | None, filename: str | None) -> jinja2.nodes.Template:
            tree = super()._parse(source, name, filename)
            return Watched().visit(tree)  # type: ignore[no-any-return]

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            _refuse_huge(operator, left, right)
            return super().call_binop(context, operator, left, right)

    environment = Environment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])

    def to_json(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = time.strftime
    return environment


def _refuse_huge(operator: str, left: Any, right: Any) -> None:
    """Stop an operation whose result would be out of all proportion before it is computed."""
    if operator == "**":
        huge = abs(right) > 64 if isinstance(right, int) else False
        huge = huge or (isinstance(left, int) and abs(left) > 10**9)
    elif operator == "*":
        sized, times = (left, right) if isinstance(left, str | list) else (right, left)
        huge = isinstance(sized, str | list) and isinstance(times, int) and len(sized) * times > MAX_CHARACTERS
    elif operator == "+":
        huge = (
            isinstance(left, str | list) and isinstance(right, str | list) and len(left) + len(right) > MAX_CHARACTERS
        )
    else:  # "%" formats strings, to any width
        huge = isinstance(left, str) and any(len(digits) > 6 for digits in _runs_of_digits(left))
    if huge:
        raise _ExceededError(f"a value made by {operator!r} is too large")


def _runs_of_digits(text: str) -> list[str]:
    return "".join(letter if letter.isdigit() else " " for letter in text).split()
