"""The commands put together, and what becomes of an error."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from octavo import __version__
from octavo.cli.bench import bench
from octavo.cli.chat import chat
from octavo.cli.demo import demo
from octavo.cli.doctor import doctor
from octavo.cli.generate import generate
from octavo.cli.ladder import ladder
from octavo.cli.quantize import quantize
from octavo.cli.simulate import simulate
from octavo.errors import EngineError, OctavoError

INTERRUPTED = 130
"""The exit code after Ctrl-C, as shells have it."""

app = typer.Typer(
    name="octavo",
    help="An LLM inference engine built around paged KV memory, and the one engine whose memory you can see.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(demo)
app.command()(generate)
app.command()(chat)
app.command()(ladder)
app.command()(simulate)
app.command()(bench)
app.command()(quantize)
app.command()(doctor)


# Recent typers carry a click of their own, without a public name for this class.
_USAGE_ERROR = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"octavo {__version__}")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    show_traceback: Annotated[
        bool,
        typer.Option("--traceback", envvar="OCTAVO_TRACEBACK", help="Show where an error came from, for bug reports."),
    ] = False,
) -> None:
    """Called before every command."""
    context.find_root().obj = show_traceback


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    command = typer.main.get_command(app)
    try:
        code = int(command.main(arguments, prog_name="octavo", standalone_mode=False) or 0)
    except typer.Exit as error:
        code = error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except BrokenPipeError:  # whoever read our output has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if isinstance(error, _USAGE_ERROR):
            return _show_usage(error)
        _say(error, wants_traceback(arguments))
        return 2 if isinstance(error, OctavoError) and not isinstance(error, EngineError) else 1
    if code == INTERRUPTED:  # typer returns it for Ctrl-C
        print("octavo: interrupted", file=sys.stderr)
    return code


def _show_usage(error: Any) -> int:
    """A mistake in the command line itself, as typer shows it."""
    if type(error).__name__ == "NoArgsIsHelpError":  # `octavo` alone: its message is the help
        print(error.format_message())
        return 0
    error.show()
    return int(error.exit_code)


def wants_traceback(arguments: Sequence[str]) -> bool:
    """Whether ``--traceback`` or ``OCTAVO_TRACEBACK`` asks for one; known even where parsing did not get that far."""
    given = os.environ.get("OCTAVO_TRACEBACK", "").strip().lower()
    return "--traceback" in arguments or given not in ("", "0", "false", "no", "off")


def _say(error: Exception, with_traceback: bool) -> None:
    """One line for a person; the traceback only for whoever asked."""
    if with_traceback:
        traceback.print_exception(error)
    text = " ".join(str(error).split()) or type(error).__name__
    if not isinstance(error, OctavoError):
        text = f"internal error: {type(error).__name__}: {text}"
        if not with_traceback:
            text += " (octavo --traceback ... shows where; please report it)"
    print(f"octavo: {text}", file=sys.stderr)
