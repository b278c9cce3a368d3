"""`python -m training`: the commands of training and `score`; `train` is the default command."""

from __future__ import annotations

import sys
from typing import NoReturn

from serve_app.batch.command import register
from serve_app.command_line import run_command
from training.commands import app

register(app)


def main() -> NoReturn:
    """Run the command line of this process and exit with its code."""
    arguments = sys.argv[1:]
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in ("--help", "-h")):
        arguments.insert(0, "train")
    sys.exit(run_command(app, arguments, "python -m training"))


if __name__ == "__main__":
    main()
