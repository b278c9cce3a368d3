"""The trial: the first load of a bundle, in a separate process with limits on memory and time.

A model can exhaust the memory or run forever while it is loaded or answers its examples. The replica then kills the process,
refuses the bundle, and continues with the model that it has. It loads only a bundle that passed its trial.

The process gets the bundle through a pipe, and an environment without secrets. It answers with one JSON object.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass, replace

import orjson

from serve_app.artifacts.bundle import Bundle
from serve_app.artifacts.memory_limit import memory_limit
from serve_app.artifacts.read_policy import BackendChoice
from serve_app.errors import BundleRefused
from serve_app.inference.policy import TrialLimits

BASE_BYTES = 1024**3
FACTOR = 30
"""The memory of a trial is at most BASE_BYTES plus FACTOR times the size of the model's files, on any machine. A file of some
hundred bytes that needs gigabytes is not a model; a compressed pickle grows less than tenfold."""
WORKING_FOLDER = "/"
PASSED_ON = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "LD_LIBRARY_PATH", "MALLOC_ARENA_MAX", "VIRTUAL_ENV", "TMPDIR")
"""Environment variables that the process of a trial inherits, besides those in `_environment`. They hold no keys or tokens."""


@dataclass(frozen=True, slots=True)
class TrialOrder:
    """The input of the process: the bundle without its files, their names and sizes (the bytes follow), and the limits."""

    bundle: Bundle
    sizes: tuple[tuple[str, int], ...]
    allow_joblib: bool
    backend: BackendChoice
    memory_bytes: int
    seconds: float


class TrialStopped(Exception):
    """`stop` was called."""


class Trial:
    """One trial. `run` blocks its thread; `stop` ends it from another thread."""

    def __init__(self, limits: TrialLimits) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False
        self._overdue = False

    def run(self, bundle: Bundle, *, allow_joblib: bool, backend: BackendChoice) -> None:
        """Return when the bundle passed. Raises BundleRefused with the reason of the process, or `load` when the process ends."""
        sizes = tuple((name, len(data)) for name, data in bundle.files.items())
        memory = memory_bytes(sum(size for _, size in sizes), self._limits.memory_share)
        order = TrialOrder(replace(bundle, files={}), sizes, allow_joblib, backend, memory, self._limits.seconds)
        process = self._start()
        timer = threading.Timer(self._limits.seconds, self._end_overdue)
        timer.daemon = True
        timer.start()
        try:
            answer = _exchange(process, pickle.dumps(order), bundle)
        finally:
            timer.cancel()
            self._kill()
            status = process.wait()
        if self._stopped:
            raise TrialStopped
        if self._overdue:
            raise BundleRefused("load", f"the model was not loaded and tried within {self._limits.seconds:g} seconds")
        _judge(answer, status, memory)

    def stop(self) -> None:
        """End the trial: `run` raises TrialStopped."""
        self._stopped = True
        self._kill()

    def _start(self) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._stopped:
                raise TrialStopped
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "serve_app.inference.trial_process"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    env=_environment(),
                    cwd=WORKING_FOLDER,
                    start_new_session=True,
                )
            except OSError as error:
                raise BundleRefused(
                    "load", f"the replica cannot start a process for the trial of the model ({error.strerror})", final=False
                ) from None
            return self._process

    def _end_overdue(self) -> None:
        self._overdue = True
        self._kill()

    def _kill(self) -> None:
        """Kill the process and its children."""
        with self._lock:
            if self._process is not None and self._process.returncode is None:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(self._process.pid, signal.SIGKILL)


def memory_bytes(model_bytes: int, share: float) -> int:
    """Memory in bytes for the trial of a model with files of this size, at most a share of the container's memory."""
    return min(int(memory_limit() * share), BASE_BYTES + FACTOR * model_bytes)


def _environment() -> dict[str, str]:
    passed_on = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    path = os.pathsep.join(os.path.abspath(folder) for folder in sys.path)
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # the stack of each thread counts as memory
    return {**passed_on, **threads, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}


def _exchange(process: subprocess.Popen[bytes], order: bytes, bundle: Bundle) -> bytes:
    """Send the order and the files to the process; returns its answer, which is empty when the process ended."""
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdout:
        with contextlib.suppress(BrokenPipeError), process.stdin as pipe:
            pipe.write(len(order).to_bytes(8, "big") + order)
            for data in bundle.files.values():
                pipe.write(data)
        return process.stdout.read(64 * 1024)


def _judge(answer: bytes, status: int, memory: int) -> None:
    """Raise BundleRefused for a refusal by the process, and for a process that ended without an answer."""
    try:
        verdict = orjson.loads(answer)
        reason, message, final = verdict["reason"], str(verdict["message"]), bool(verdict["final"])
    except (ValueError, KeyError, TypeError):
        name = signal.Signals(-status).name if status < 0 else f"exit code {status}"
        raise BundleRefused(
            "load", f"the process that tried the model ended ({name}); its memory limit was {memory // 2**20} MiB"
        ) from None
    if reason == "memory":
        raise BundleRefused("load", f"the model needs more memory than the {memory // 2**20} MiB of its trial")
    if reason is not None:
        raise BundleRefused(reason if reason in BundleRefused.REASONS else "load", message, final=final)
