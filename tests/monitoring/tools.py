"""promtool and amtool, as they are installed: the ones of Debian (2.42 and 0.25) will do."""

from __future__ import annotations

import re
import shutil
import subprocess
from functools import cache

import pytest

PACKAGES = {"prometheus": "prometheus", "promtool": "prometheus", "amtool": "prometheus-alertmanager"}


@cache
def version(name: str) -> tuple[int, int]:
    """The version of an installed tool."""
    match = re.search(r"version (\d+)\.(\d+)", run(name, "--version"))
    assert match is not None
    return int(match.group(1)), int(match.group(2))


def path(name: str) -> str:
    """The path of a tool; the test fails when it is not installed."""
    program = shutil.which(name)
    if program is None:
        pytest.fail(f"{name} is not in PATH: apt-get install {PACKAGES[name]}", pytrace=False)
    return program


def run(name: str, *arguments: str) -> str:
    """The output of a tool; the test fails when the tool fails or is not installed."""
    process = subprocess.run([path(name), *arguments], capture_output=True, text=True, check=False, timeout=240)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout or process.stderr  # older versions write warnings to standard output
