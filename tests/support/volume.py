"""A volume of a known size, which only root can mount."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path


def mount(folder: Path, options: str) -> bool:
    """A file system in memory at this folder; False where that is not allowed."""
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def unmount(folder: Path) -> None:
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(folder: Path, *, leave: int = 0) -> Path:
    """A file that takes all room but so many bytes."""
    found = os.statvfs(folder)
    ballast = folder / "ballast"
    ballast.write_bytes(b"." * max(0, found.f_bavail * found.f_frsize - leave))
    return ballast
