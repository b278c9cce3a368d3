"""The examples of a page of the documentation: blocks of code, each with the block of text that it prints behind it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

_BLOCK = re.compile(r"^```(sh|python|js|go|java)(?: ([\w.]+))?\n(.*?)^```\n\n^```text\n(.*?)^```$", re.DOTALL | re.MULTILINE)


class Example(NamedTuple):
    """A program in a language, what it prints, and the package that it needs beside the language."""

    language: str
    package: str
    program: str
    output: str


def examples_of(page: Path) -> Iterator[Example]:
    """The examples of a page in their order."""
    for language, package, program, output in _BLOCK.findall(page.read_text()):
        yield Example(language, package, program, output)


def command_of(example: Example, file: Path, python_with_clients: Path) -> list[str] | None:
    """The command that runs the program, which is written to `file` with its ending; None where its language is not installed."""
    program = file.with_suffix({"js": ".mjs", "sh": ".sh", "python": ".py", "go": ".go", "java": ".java"}[example.language])
    program.write_text(example.program)
    if example.language == "python":
        python = str(python_with_clients) if example.package else sys.executable
        return [python, str(program)] if shutil.which(python) else None
    command = {"sh": ["bash"], "js": ["node"], "go": ["go", "run"], "java": ["java"]}[example.language]
    return [*command, str(program)] if shutil.which(command[0]) else None


def printed(command: list[str], variables: Mapping[str, str]) -> str:
    """What a program prints."""
    environment = {**os.environ, **variables, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
