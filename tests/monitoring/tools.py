"""promtool and amtool, as they are installed: the ones of Debian (2.42 and 0.25) will do."""

from __future__ import annotations

import re
import shutil
import subprocess
from functools import cache

import pytest

PACKAGES = {"promtool": "prometheus", "amtool": "prometheus-alertmanager"}


@cache
def version(name: str) -> tuple[int, int]:
    """The version of an installed tool."""
    found = re.search(r"version (\d+)\.(\d+)", run(name, "--version"))
    assert found is not None
    return int(found.group(1)), int(found.group(2))


def run(name: str, *arguments: str) -> str:
    """What a tool says; the test fails when the tool does, or is not there."""
    program = shutil.which(name)
    if program is None:
        pytest.fail(f"{name} is not in PATH: apt-get install {PACKAGES[name]}", pytrace=False)
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout or done.stderr  # older ones mix warnings in
