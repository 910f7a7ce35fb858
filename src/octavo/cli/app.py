"""The commands put together, and what becomes of an error."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import click
import typer

from octavo import __version__
from octavo.cli.chat import chat
from octavo.cli.demo import demo
from octavo.cli.doctor import doctor
from octavo.cli.generate import generate
from octavo.errors import EngineError, OctavoError

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
app.command()(doctor)


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
        return int(command.main(arguments, prog_name="octavo", standalone_mode=False) or 0)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show(sys.stdout)
        return 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.exceptions.Exit as error:
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        print("octavo: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read our output has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        _say(error, wants_traceback(arguments))
        return 2 if isinstance(error, OctavoError) and not isinstance(error, EngineError) else 1


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
