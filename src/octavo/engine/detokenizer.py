"""Token ids to text, a few at a time, never half a character.

A tokenizer's decoder is a function of the whole list of ids, and calling it on everything for each new token costs
quadratic time. The decoders that language models use, though, are sums: each token adds fixed bytes or a fixed piece
of text, with special rules only at the beginning of the text and for broken UTF-8. Those rules are read here from the
tokenizer's own description, and applied as tokens come. Any other decoder is run on a window of recent tokens.
"""

from __future__ import annotations

import codecs
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from octavo.engine.tokenizer import Tokenizer

_REPLACEMENT = "�"
_utf8 = codecs.getincrementaldecoder("utf-8")


class IncrementalDetokenizer:
    """The text of a growing list of tokens.

    Whatever the pushes, the pieces returned, joined, with :meth:`finish`'s at the end, are the text that the tokens
    add to the prompt's: ``decode(prompt + tokens)`` without its beginning ``decode(prompt)``. With no prompt they are
    ``decode(tokens)``. A character whose bytes have not all come is held back. So is a run of byte tokens
    of a SentencePiece-like tokenizer (``<0xE4>``), until another token ends it: such a run is decoded as one.

    Args:
        tokenizer: whose ids they are.
        prompt_ids: what stands before; only its last few, and whether there is any, matter.
        skip_special_tokens: leave special tokens out of the text.
    """

    __slots__ = ("_state",)

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int] = (), skip_special_tokens: bool = True) -> None:
        self._state = tokenizer.pieces.start(prompt_ids, skip_special_tokens)

    def push(self, token_ids: Iterable[int]) -> str:
        """The text that further tokens complete."""
        return self._state.push(token_ids)

    def finish(self) -> str:
        """The text held back, once nothing more will come; broken characters become U+FFFD."""
        return self._state.finish()


class State(Protocol):
    """One text in the making."""

    def push(self, token_ids: Iterable[int]) -> str:
        """Further text."""

    def finish(self) -> str:
        """The rest of the text."""


class Pieces(ABC):
    """What each token adds to a text, filled as tokens are met."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    @staticmethod
    def of(tokenizer: Tokenizer) -> Pieces:
        """The pieces for a tokenizer's kind of decoder."""
        stages = _stages(tokenizer)
        kinds = [stage["type"] for stage in stages]
        if kinds == ["ByteLevel"]:
            return BytePieces(tokenizer)
        if kinds == ["Metaspace"]:
            return TextPieces.metaspace(tokenizer, stages[0])
        return TextPieces.sequence(tokenizer, stages) or WindowPieces(tokenizer)

    @abstractmethod
    def start(self, prompt_ids: Sequence[int], skip_special_tokens: bool) -> State:
        """A text that continues a prompt."""


def _stages(tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """The decoder's description, flattened."""
    decoder = tokenizer.backend.decoder
    if decoder is None:
        return []
    stages: list[dict[str, Any]] = []
    pending = [json.loads(decoder.__getstate__())]
    while pending:
        stage = pending.pop(0)
        if stage["type"] == "Sequence":
            pending = stage["decoders"] + pending
        else:
            stages.append(stage)
    return stages


# -- byte-level BPE: a token is a string of bytes ---------------------------------------------------------------------


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's spelling of the 256 bytes as printable characters (Radford et al., 2019): printable Latin-1 bytes stand
    for themselves, the others follow from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    alphabet = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in set(printable)]
    alphabet.update({chr(256 + place): byte for place, byte in enumerate(others)})
    return alphabet


_ALPHABET = _byte_alphabet()


class BytePieces(Pieces):
    """Byte-level BPE (GPT-2, Llama 3, Qwen, SmolLM): the text is the bytes' UTF-8 reading."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__(tokenizer)
        self._bytes: dict[int, bytes] = {}

    def bytes_of(self, token_id: int) -> bytes:
        """The bytes of a token; none for an id beyond the vocabulary."""
        found = self._bytes.get(token_id)
        if found is None:
            found = self._bytes[token_id] = self._spell(token_id)
        return found

    def _spell(self, token_id: int) -> bytes:
        token = self.tokenizer.id_to_token(token_id)
        if token is None:
            return b""
        try:
            return bytes([_ALPHABET[letter] for letter in token])
        except KeyError:  # an added token, written in plain text
            return token.encode("utf-8")

    def start(self, prompt_ids: Sequence[int], skip_special_tokens: bool) -> State:
        """A text that continues a prompt, in the middle of a character if the prompt ends there."""
        skipped = self.tokenizer.special_ids if skip_special_tokens else frozenset()
        state = _ByteState(self.bytes_of, skipped)
        begin, length = len(prompt_ids), 0
        while begin and length < 4:  # a character has four bytes at the most
            begin -= 1
            length += 0 if prompt_ids[begin] in skipped else len(self.bytes_of(prompt_ids[begin]))
        state.push(prompt_ids[begin:])
        return state


class _ByteState:
    __slots__ = ("_bytes_of", "_decoder", "_skipped")

    def __init__(self, bytes_of: Any, skipped: frozenset[int]) -> None:
        self._bytes_of = bytes_of
        self._skipped = skipped
        self._decoder = _utf8("replace")

    def push(self, token_ids: Iterable[int]) -> str:
        skipped, bytes_of = self._skipped, self._bytes_of
        return self._decoder.decode(b"".join([bytes_of(token) for token in token_ids if token not in skipped]))

    def finish(self) -> str:
        return self._decoder.decode(b"", True)


# -- SentencePiece-like BPE: a token is a piece of text, or one byte --------------------------------------------------


class TextPieces(Pieces):
    """SentencePiece-like tokenizers (Llama 2, Mistral, Gemma): ``▁`` for a space, ``<0xE4>`` for a stray byte.

    Args:
        replace: (what, by what) pairs, applied within each token in this order.
        byte_tokens: whether ``<0x..>`` stands for a byte.
        strip: (character, how many) to take from the beginning of the text.
        first: a character dropped wherever it stands in the text's first token.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        replace: Sequence[tuple[str, str]],
        byte_tokens: bool,
        strip: tuple[str, int] | None = None,
        first: str | None = None,
    ) -> None:
        super().__init__(tokenizer)
        self.replace = tuple(replace)
        self.byte_tokens = byte_tokens
        self.strip = strip
        self.first = first
        self._pieces: dict[int, str | int | None] = {}

    @classmethod
    def metaspace(cls, tokenizer: Tokenizer, stage: dict[str, Any]) -> TextPieces:
        """For a lone Metaspace decoder, which drops the space before the first token."""
        mark = stage["replacement"]
        scheme = stage.get("prepend_scheme", "always")
        return cls(tokenizer, [(mark, " ")], False, first=None if scheme == "never" else mark)

    @classmethod
    def sequence(cls, tokenizer: Tokenizer, stages: list[dict[str, Any]]) -> TextPieces | None:
        """For Replace..., ByteFallback, Fuse, Strip in this order; None where the decoder is of another kind."""
        rest = list(stages)
        replace = []
        while rest and rest[0]["type"] == "Replace" and set(rest[0]["pattern"]) == {"String"}:
            stage = rest.pop(0)
            replace.append((stage["pattern"]["String"], stage["content"]))
        byte_tokens = bool(rest) and rest[0]["type"] == "ByteFallback"
        if byte_tokens:
            rest.pop(0)
        if not replace and not byte_tokens:
            return None
        strip = None
        if rest and rest[0]["type"] == "Fuse":
            rest.pop(0)
            if rest and rest[0]["type"] == "Strip" and rest[0]["stop"] == 0:
                stage = rest.pop(0)
                strip = (stage["content"], stage["start"])
        return None if rest else cls(tokenizer, replace, byte_tokens, strip)

    def piece(self, token_id: int) -> str | int | None:
        """A token's text, or its byte, or None for an id beyond the vocabulary."""
        try:
            return self._pieces[token_id]
        except KeyError:
            found = self._pieces[token_id] = self._spell(token_id)
            return found

    def _spell(self, token_id: int) -> str | int | None:
        token = self.tokenizer.id_to_token(token_id)
        if token is None:
            return None
        for what, by in self.replace:
            token = token.replace(what, by)
        if self.byte_tokens and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            try:
                return int(token[3:5], 16)
            except ValueError:
                return token
        return token

    def start(self, prompt_ids: Sequence[int], skip_special_tokens: bool) -> State:
        """A text that continues a prompt; its first word keeps the space before it."""
        skipped = self.tokenizer.special_ids if skip_special_tokens else frozenset()
        state = _TextState(self, skipped)
        run = len(prompt_ids)  # where the byte tokens begin that the first new ones may go on with
        while run and (prompt_ids[run - 1] in skipped or not isinstance(self.piece(prompt_ids[run - 1]), str)):
            run -= 1
        for token in prompt_ids[:run]:  # until the beginning of the text, with its special rules, is behind
            if not state.beginning:
                break
            state.push([token])
        state.run.clear()
        state.push(prompt_ids[run:])
        state.hide()
        return state


class _TextState:
    __slots__ = ("_pieces", "_skipped", "_strip", "beginning", "drop", "run")

    def __init__(self, pieces: TextPieces, skipped: frozenset[int]) -> None:
        self._pieces = pieces
        self._skipped = skipped
        self._strip = pieces.strip[1] if pieces.strip else 0
        self.beginning = bool(self._strip) or pieces.first is not None
        self.run: list[int] = []
        self.drop = 0  # characters of the run that belong to the prompt

    def push(self, token_ids: Iterable[int]) -> str:
        text = []
        for token in token_ids:
            if token in self._skipped:
                continue
            piece = self._pieces.piece(token)
            if piece is None:
                continue
            if isinstance(piece, int):
                self.run.append(piece)
                continue
            if self.run:
                text.append(self._end_run())
            if self.beginning:
                piece = self._begin(piece, token)
            text.append(piece)
        return "".join(text)

    def finish(self) -> str:
        return self._end_run() if self.run else ""

    def hide(self) -> None:
        """Leave out of the text those characters of the run that are complete now: they are the prompt's."""
        text = bytes(self.run).decode("utf-8", "ignore")
        self.drop = len(self._stripped(text)[0] if self.beginning else text)

    def _end_run(self) -> str:
        text = _read_run(self.run)
        if self.beginning:
            text = self._begin(text, None)
        text = text[self.drop :]
        self.run.clear()
        self.drop = 0
        return text

    def _begin(self, piece: str, token: int | None) -> str:
        if self._pieces.strip is not None:
            piece, self._strip = self._stripped(piece)
            self.beginning = not piece and self._strip > 0
            return piece
        self.beginning = False
        raw = self._pieces.tokenizer.id_to_token(token) if token is not None else None
        return raw.replace(self._pieces.first or "", "") if raw is not None else piece

    def _stripped(self, piece: str) -> tuple[str, int]:
        """The piece without the characters still to be taken from the beginning, and how many are left to take."""
        left = self._strip
        mark = self._pieces.strip[0] if self._pieces.strip else ""
        while left and piece.startswith(mark):
            piece = piece[len(mark) :]
            left -= 1
        return piece, left


def _read_run(run: Iterable[int]) -> str:
    """A run of byte tokens, as tokenizers' ByteFallback reads it: all of it UTF-8, or one U+FFFD for each byte."""
    data = bytes(run)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return _REPLACEMENT * len(data)


# -- anything else ----------------------------------------------------------------------------------------------------


class WindowPieces(Pieces):
    """Decoders of another kind (WordPiece, CTC, none at all): the decoder runs on the last few tokens, and what a new
    token adds is the difference. Exact for decoders that look no further back than the window."""

    WINDOW = 8

    def start(self, prompt_ids: Sequence[int], skip_special_tokens: bool) -> State:
        """A text that continues a prompt."""
        return _WindowState(self.tokenizer, prompt_ids, skip_special_tokens)


class _WindowState:
    __slots__ = ("_shown", "_skip", "_skipped", "_tokenizer", "_window")

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int], skip: bool) -> None:
        self._tokenizer = tokenizer
        self._skip = skip
        self._skipped = tokenizer.special_ids if skip else frozenset()
        kept = [token for token in prompt_ids[-4 * WindowPieces.WINDOW :] if token not in self._skipped]
        self._window = kept[-WindowPieces.WINDOW :]
        self._shown = self._read()

    def _read(self) -> str:
        return self._tokenizer.decode(self._window, self._skip)

    def push(self, token_ids: Iterable[int]) -> str:
        out = []
        for token in token_ids:
            if token in self._skipped:
                continue
            self._window.append(token)
            text = self._read()
            if text.endswith(_REPLACEMENT) and len(self._window) < 4 * WindowPieces.WINDOW:
                continue  # half a character, most likely
            out.append(self._advance(text))
        return "".join(out)

    def finish(self) -> str:
        return self._advance(self._read())

    def _advance(self, text: str) -> str:
        new = text[len(self._shown) :]
        if len(self._window) > WindowPieces.WINDOW:
            del self._window[: -WindowPieces.WINDOW]
            text = self._read()
        self._shown = text
        return new
