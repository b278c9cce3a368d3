"""A file or pipe beside standard error that takes log lines without making a request wait.

Ray sends the standard error of a replica to a file inside the pod, so `kubectl logs` does not show it. The first process of the
container has the pipe that the container runtime reads: /proc/1/fd/2.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path


class LogFile:
    """A text stream. A line that the reader of a pipe has no room for goes to standard error instead."""

    def __init__(self, path: Path) -> None:
        """Open a file, or a pipe that somebody reads; raises OSError."""
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK, 0o644)
        self._torn = False

    def write(self, text: str) -> int:
        """Write whole lines; never waits."""
        data = text.encode(errors="replace")
        if self._torn:
            data = b"\n" + data
        written = 0
        with contextlib.suppress(OSError):
            written = os.write(self._descriptor, data)
        if written < len(data):
            sys.stderr.write(text)
        # Lines of up to 4 KiB are written to a pipe as a whole or not at all.
        self._torn = 0 < written < len(data) or (self._torn and written == 0)
        return len(text)

    def flush(self) -> None:
        """Nothing is kept back."""

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self._descriptor)
