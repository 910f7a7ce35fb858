"""The commands as a user meets them."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from octavo import __version__
from octavo.cli import main
from octavo.cli.demo import PROMPTS

QUICK = ["--kernels", "reference", "--num-blocks", "64", "--max-num-seqs", "8"]
Octavo = Callable[..., tuple[int, str, str]]


@pytest.fixture
def octavo(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Octavo:
    """Run a command in this process: (exit code, stdout, stderr)."""

    def run(*arguments: str, stdin: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


def test_version_and_help(octavo: Octavo) -> None:
    assert octavo("--version") == (0, f"octavo {__version__}\n", "")
    for arguments in ([], ["--help"], ["-h"]):
        code, out, _ = octavo(*arguments)
        assert code == 0
        for command in ("demo", "generate", "chat", "doctor"):
            assert command in out


def test_generate_continues_each_prompt(octavo: Octavo) -> None:
    code, out, err = octavo(
        "generate", "Once upon a time", "The fox", "--max-tokens", "6", "--temperature", "0", *QUICK
    )
    assert code == 0
    assert out.startswith("Once upon a time")
    assert "\nThe fox" in out
    assert "2/2 requests, 12 tokens" in err
    assert "\x1b" not in out + err


def test_generate_says_how_guesses_fared(octavo: Octavo) -> None:
    arguments = ["generate", "The fox and the fox and", "--max-tokens", "40", "--temperature", "0", "--ignore-eos"]
    arguments += [*QUICK, "--dtype", "float32"]
    guessing = ["--speculative", "ngram", "--ngram-min", "1", "--row-cost", "0"]
    code, out, err = octavo(*arguments, *guessing)
    assert code == 0
    found = re.search(r"^(\d+) of (\d+) guessed tokens came true.*; (\d+) steps$", err, re.MULTILINE)
    assert found is not None
    accepted, drafted, steps = map(int, found.groups())
    assert 0 <= accepted <= drafted > 0
    assert steps == 40 - accepted
    _, same, err = octavo(*arguments)
    assert same == out
    assert "guessed" not in err
    assert "guessed" not in octavo(*arguments, *guessing, "--quiet")[2]


def rows(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def test_generate_prints_json_lines(octavo: Octavo) -> None:
    base = ["generate", "Once upon a time", "--max-tokens", "5", "--temperature", "0", "--json", *QUICK]
    code, out, _ = octavo(*base)
    assert code == 0
    [row] = rows(out)
    assert set(row) == {"prompt", "text", "token_ids", "finish_reason"}
    assert row["prompt"] == "Once upon a time"
    assert len(row["token_ids"]) == 5
    assert row["finish_reason"] == "length"

    code, out, _ = octavo(*base, "--stop", row["text"][-3:], "--logprobs", "1", "--prompt-logprobs", "0", "-q")
    [stopped] = rows(out)
    assert stopped["finish_reason"] == "stop"
    assert stopped["stop_reason"] == row["text"][-3:]
    assert row["text"].startswith(stopped["text"])
    assert len(stopped["logprobs"]) == len(stopped["token_ids"])
    assert len(stopped["prompt_logprobs"]) > 1

    _, out, _ = octavo(*[*base[:-7], "--max-tokens", "5", "--json", *QUICK], "--n", "2", "--seed", "3")
    assert [each["index"] for each in rows(out)] == [0, 1]


def test_generate_reads_files_and_stdin(octavo: Octavo, tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("One day\n\nTwo cats\n", encoding="utf-8")
    common = ["--max-tokens", "2", "--json", "-q", *QUICK]
    _, out, err = octavo("generate", "First", "--file", str(path), *common)
    assert [row["prompt"] for row in rows(out)] == ["First", "One day", "Two cats"]
    assert err == ""
    for arguments in (["-"], ["--file", "-"]):
        _, out, _ = octavo("generate", *arguments, *common, stdin="A\nB\n")
        assert [row["prompt"] for row in rows(out)] == ["A", "B"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate"], "no prompt"),
        (["generate", "--file", "/no/such/file"], r"--file /no/such/file cannot be read"),
        (["generate", "x", "--temperature", "-1"], "temperature=-1.0 must be at least 0"),
        (["generate", "x", "--dtype", "int3"], "dtype='int3' is unknown"),
        (["generate", "x", "--model", "/no/such/model"], "there is no folder /no/such/model"),
        (["generate", "x", "--max-tokens", "5", "--min-tokens", "6"], "min_tokens=6 exceeds max_tokens=5"),
        (["generate", "x", "--logprobs", "2"], "shown by --json only"),
        (["generate", "word " * 2000, *QUICK], "(?s)prompt.*1024"),
        (["generate", "x", "--max-tokes", "3"], "No such option"),
        (["generate", "x", "--num-blocks", "many"], "valid integer"),
        (["nonsense"], "No such command"),
        (["chat", "--model", "/no/such/model"], "there is no folder"),
        (["doctor", "--model", "/no/such/model"], "there is no folder"),
        (["demo", "--n", "2"], "No such option"),
    ],
)
def test_mistakes_are_one_clear_line(octavo: Octavo, arguments: list[str], message: str) -> None:
    code, out, err = octavo(*arguments)
    assert code == 2
    assert out == ""
    assert re.search(message, err)
    assert "Traceback" not in err
    assert len(err.splitlines()) <= 4


def test_a_traceback_is_shown_when_asked_for(octavo: Octavo, monkeypatch: pytest.MonkeyPatch) -> None:
    code, _, err = octavo("--traceback", "generate")
    assert code == 2
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("octavo: no prompt")
    monkeypatch.setenv("OCTAVO_TRACEBACK", "1")
    assert "Traceback" in octavo("generate")[2]
    monkeypatch.setenv("OCTAVO_TRACEBACK", "0")
    assert "Traceback" not in octavo("generate")[2]


def test_failures_of_our_own_have_another_exit_code(octavo: Octavo, monkeypatch: pytest.MonkeyPatch) -> None:
    from octavo.engine import LLMEngine
    from octavo.errors import EngineError

    def fail(error: BaseException) -> None:
        def generate(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr(LLMEngine, "generate", generate)

    fail(EngineError("a step failed"))
    code, _, err = octavo("generate", "x", "-q", *QUICK)
    assert (code, err) == (1, "octavo: a step failed\n")
    fail(ZeroDivisionError("by zero"))
    code, _, err = octavo("generate", "x", "-q", *QUICK)
    assert code == 1
    assert err.startswith("octavo: internal error: ZeroDivisionError: by zero (octavo --traceback")
    fail(KeyboardInterrupt())
    code, _, err = octavo("generate", "x", "-q", *QUICK)
    assert (code, err) == (130, "octavo: interrupted\n")


def test_chat_answers_each_line(octavo: Octavo) -> None:
    lines = "Tell me of a king\n\n/help\nAnd his daughter?\n/reset\nOnce\n/exit\nnot read\n"
    code, out, _ = octavo("chat", "--max-tokens", "4", "--temperature", "0", "--system", "x", *QUICK, stdin=lines)
    assert code == 0
    assert "/reset begins anew" in out
    assert "(a new conversation)" in out
    assert "\x1b" not in out


def test_chat_forgets_the_oldest_turns(octavo: Octavo) -> None:
    lines = "\n".join("one and two and three and four and five" for _ in range(4))
    code, _, err = octavo("chat", "--max-tokens", "8", "--max-model-len", "40", *QUICK, stdin=lines)
    assert code == 0
    assert "messages are forgotten" in err
    code, _, err = octavo("chat", "--max-model-len", "8", *QUICK, stdin=lines)
    assert code == 2
    assert "prompt" in err


def test_chat_needs_a_template(octavo: Octavo, tmp_path: Path) -> None:
    from octavo.hub import bundled_model

    for path in bundled_model().iterdir():
        (tmp_path / path.name).symlink_to(path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config.pop("chat_template")
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    code, _, err = octavo("chat", "--model", str(tmp_path), *QUICK, stdin="hi\n")
    assert code == 2
    assert "tokenizer_config.json has no chat_template" in err


def test_doctor_reports_and_changes_nothing(octavo: Octavo) -> None:
    code, out, _ = octavo("doctor", "--num-blocks", "100", "--dtype", "float32")
    assert code == 0
    for word in ("Machine", "Memory plan", "float32 (as configured)", "100 blocks of 16 tokens", "1,600 fit at once"):
        assert word in " ".join(out.split())
    code, out, _ = octavo("doctor", "--json", "--num-blocks", "100")
    assert code == 0
    report = json.loads(out)
    assert report["memory"]["num_blocks"] == 100
    assert report["memory"]["tokens"] == 1600
    assert report["model"]["architecture"] == "LlamaForCausalLM"
    assert report["versions"]["torch"]


def test_demo_in_plain_lines(octavo: Octavo) -> None:
    code, out, _ = octavo("demo", "--max-tokens", "12", *QUICK)
    assert code == 0
    assert "\x1b" not in out
    flowing = " ".join(out.split())
    for prompt in PROMPTS:
        assert prompt in flowing
    after = out[out.index("Memory at its fullest") :].splitlines()[1:]
    cells = "".join(line for line in after if re.fullmatch(r"[A-H#o· ]+", line)).replace(" ", "")
    assert len(cells) == 64
    assert set("CDEFGH") <= set(cells)
    assert "#" in cells  # two stories begin alike
    assert "64 blocks of 16 tokens" in out
    found = re.search(r"96 tokens in [\d.]+ s, (\d+) steps", out)
    assert found is not None
    assert int(found.group(1)) >= 12


def test_demo_when_memory_is_short(octavo: Octavo) -> None:
    code, out, _ = octavo("demo", "--max-tokens", "24", "--kernels", "reference", "--num-blocks", "12")
    assert code == 0
    found = re.search(r"(\d+) preemptions", out)
    assert found is not None
    assert int(found.group(1)) > 0


def test_demo_live(octavo: Octavo) -> None:
    code, out, _ = octavo("demo", "--max-tokens", "4", "--live", *QUICK)
    assert code == 0
    assert "192 tokens" not in out
    assert "Memory" in out


def test_the_installed_command() -> None:
    command = Path(sys.executable).with_name("octavo")
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OCTAVO_")}
    done = subprocess.run([command, "--version"], capture_output=True, text=True, env=clean, check=True)
    assert done.stdout == f"octavo {__version__}\n"
    reader = subprocess.Popen([command, "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=clean)
    assert reader.stdout is not None
    reader.stdout.close()  # a reader that goes away is no crash
    assert b"Traceback" not in reader.communicate()[1]
