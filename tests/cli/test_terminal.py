"""Progress lines and bars, and the commands on a real (pseudo) terminal."""

from __future__ import annotations

import io
import itertools
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from octavo.cli.terminal import LoadProgress, console, is_terminal, notes
from octavo.plan import ModelFacts

QUICK = ["--kernels", "reference", "--num-blocks", "100"]
WAIT = 250.0  # seconds, for a busy machine


class Screen(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_load_progress_in_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", io.StringIO())
    seconds = itertools.count(0.0, 0.125)
    monkeypatch.setattr("octavo.cli.terminal.time.monotonic", lambda: next(seconds))
    with LoadProgress() as progress:
        for done in range(0, 5_000_000, 100_000):
            progress("loading weights", done, 5_000_000)
        progress("compiling a", 0, 2)
        progress("compiling b", 1, 2)
        progress("fetching x", 3, 0)
    lines = sys.stderr.getvalue().splitlines()  # type: ignore[attr-defined]
    assert lines == ["loading weights: 1 MB of 5 MB", "compiling a: 0 of 2", "compiling b: 1 of 2", "fetching x: 3"]
    with LoadProgress(quiet=True) as progress:
        progress("loading weights", 1, 2)
    progress("capturing decode steps", 1, 2)  # its time is over
    assert len(sys.stderr.getvalue().splitlines()) == 4  # type: ignore[attr-defined]


def test_load_progress_as_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stderr", Screen())
    with LoadProgress() as progress:
        progress("loading weights", 2_000_000, 4_000_000)
        progress("compiling a", 1, 2)
    before = len(sys.stderr.getvalue())  # type: ignore[attr-defined]
    progress("capturing decode steps", 1, 2)
    assert len(sys.stderr.getvalue()) == before  # type: ignore[attr-defined]
    shown = sys.stderr.getvalue()  # type: ignore[attr-defined]
    assert "\x1b[" in shown
    assert "loading weights" in shown or "compiling a" in shown


def test_no_control_codes_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = io.StringIO()
    console(plain).print("[bold red]text[/]")
    assert plain.getvalue() == "text\n"
    monkeypatch.setenv("TERM", "dumb")
    assert not is_terminal(Screen())
    monkeypatch.setenv("TERM", "xterm")
    assert is_terminal(Screen())


def test_notes_for_people() -> None:
    facts = ModelFacts(num_blocks=1, max_model_len=1, vocab_size=1, notes=("linear 4x4: plain", "context cut"))
    assert notes(facts) == ["context cut"]


class Terminal:
    """A command on a pseudo terminal."""

    def __init__(self, *arguments: str, program: str = "octavo") -> None:
        ours, theirs = pty.openpty()
        environment = {name: value for name, value in os.environ.items() if not name.startswith("OCTAVO_")}
        self.process = subprocess.Popen(
            [Path(sys.executable).with_name(program), *arguments],
            stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
            env={**environment, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30"},
            preexec_fn=_own_terminal,
        )  # fmt: skip
        os.close(theirs)
        self.file = ours
        self.shown = ""

    def write(self, text: str) -> None:
        os.write(self.file, text.encode())

    def wait_for(self, pattern: str) -> None:
        """Read until what is shown since the last call matches."""
        deadline, seen = time.monotonic() + WAIT, ""
        while not re.search(pattern, seen):
            assert time.monotonic() < deadline, f"no {pattern!r} in {seen!r}"
            piece = self._read()
            assert piece is not None, f"ended without {pattern!r}: {seen!r}"
            seen += piece
            self.shown += piece

    def finish(self) -> int:
        """Read to the end; the exit code."""
        deadline = time.monotonic() + WAIT
        while time.monotonic() < deadline:
            piece = self._read()
            if piece is None:
                break
            self.shown += piece
        return self.process.wait(timeout=WAIT)

    def _read(self) -> str | None:
        if not select.select([self.file], [], [], 0.2)[0]:
            return ""
        try:
            return os.read(self.file, 65536).decode("utf-8", "replace") or None
        except OSError:  # the other side is closed
            return None

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.file)


def _own_terminal() -> None:
    import fcntl
    import signal
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl-C comes as a signal
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a test run in a shell's background inherits that it is ignored


@pytest.fixture
def terminal() -> Iterator[type[Terminal]]:
    opened: list[Terminal] = []

    class Opened(Terminal):
        def __init__(self, *arguments: str, program: str = "octavo") -> None:
            super().__init__(*arguments, program=program)
            opened.append(self)

    yield Opened
    for each in opened:
        each.close()


READER = """
import signal, threading, time
from octavo.cli.terminal import read_line

def interrupt():
    time.sleep(0.5)
    signal.pthread_kill(threading.get_ident(), signal.SIGINT)

print(repr(read_line("first> ")), repr(read_line("second> ")))
threading.Thread(target=interrupt).start()
try:
    read_line("third> ")
except KeyboardInterrupt:
    print("interrupted")
try:
    read_line("fourth> ")
except EOFError:
    print("ended")
"""


def test_an_interrupt_is_noticed_whichever_thread_it_comes_to(terminal: type[Terminal]) -> None:
    reader = terminal("-c", READER, program=Path(sys.executable).name)
    reader.wait_for("first> $")
    reader.write("one\n\n")
    reader.wait_for("'one' ''(.|\n)*third> (.|\n)*interrupted(.|\n)*fourth> $")
    reader.write("\x04")
    assert reader.finish() == 0
    assert "ended" in reader.shown


def test_chat_on_a_terminal(terminal: type[Terminal]) -> None:
    chat = terminal("chat", "--max-tokens", "900", "--ignore-eos", *QUICK)
    chat.wait_for("> $")
    chat.write("Tell me of a king\n")
    chat.wait_for(r"king\r\n(.|\n)*\w+ \w+")  # the reply has begun
    chat.write("\x03")
    chat.wait_for(r"\(stopped\)(.|\n)*> $")
    chat.write("/reset\n")
    chat.wait_for("a new conversation(.|\n)*> $")
    chat.write("\x03")
    chat.wait_for("/exit ends(.|\n)*> $")
    chat.write("/exit\n")
    assert chat.finish() == 0
    assert "Traceback" not in chat.shown


def test_generate_streams_on_a_terminal(terminal: type[Terminal]) -> None:
    generate = terminal("generate", "Once upon a time", "--max-tokens", "8", "--temperature", "0", *QUICK)
    assert generate.finish() == 0
    assert re.search(r"Once upon a time[^\r\n]{10,}", generate.shown)


def test_the_demo_on_a_terminal(terminal: type[Terminal]) -> None:
    demo = terminal("demo", "--max-tokens", "12", *QUICK)
    assert demo.finish() == 0
    assert re.search(r"\x1b\[[\d;]*48;", demo.shown)  # coloured cells
    assert "100 blocks of 16 tokens" in demo.shown
    assert "writing" in demo.shown
    assert "Memory at its fullest" in demo.shown
