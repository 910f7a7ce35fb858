"""The command line: one module a command. Heavy things are imported by the command that needs them."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``octavo`` with these arguments [the process's], and exit.

    Exit codes: 0 done; 1 the engine failed; 2 what was asked for cannot be done; 130 interrupted.
    """
    from octavo.cli.app import run

    raise SystemExit(run(arguments))
