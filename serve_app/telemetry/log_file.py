"""A file or pipe for log lines in place of standard error; writes do not block requests.

Ray sends the standard error of a replica to a file inside the pod, so `kubectl logs` does not show it. The container runtime reads
the pipe of the first process of the container: /proc/1/fd/2.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path


class LogFile:
    """A text stream. When a pipe is full, a line goes to standard error instead."""

    def __init__(self, path: Path) -> None:
        """Open a file, or a pipe that has a reader; raises OSError."""
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK, 0o644)
        self._torn = False

    def write(self, text: str) -> int:
        """Write whole lines without blocking."""
        data = text.encode(errors="replace")
        if self._torn:
            data = b"\n" + data
        written = 0
        with contextlib.suppress(OSError):
            written = os.write(self._descriptor, data)
        if written < len(data):
            sys.stderr.write(text)
        # A write of up to 4 KiB to a pipe is atomic.
        self._torn = 0 < written < len(data) or (self._torn and written == 0)
        return len(text)

    def flush(self) -> None:
        """Do nothing, because the stream has no buffer."""

    def close(self) -> None:
        """Close the file descriptor."""
        os.close(self._descriptor)
