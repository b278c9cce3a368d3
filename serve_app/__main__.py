"""`python -m serve_app`: the command line `iris-api` under its module's name; without a command it serves."""

from __future__ import annotations

import sys

from serve_app.cli import ROOT_OPTIONS, main


def with_default_command(arguments: list[str]) -> list[str]:
    """Return the arguments with `serve` in front when they name no command."""
    if not arguments or (arguments[0].startswith("-") and arguments[0].partition("=")[0] not in ROOT_OPTIONS):
        return ["serve", *arguments]
    return arguments


if __name__ == "__main__":
    sys.exit(main(with_default_command(sys.argv[1:]), program="python -m serve_app"))
