"""The process of a trial: `python -m serve_app.inference.trial_process`, started by `trial.py`.

It reads an order from its standard input, sets its limits, loads the bundle like a replica, and writes one JSON object to its
standard output: `reason` (null after a successful load, `memory` for the memory limit), `message` and `final` of the refusal.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import orjson

from serve_app.errors import BundleRefused
from serve_app.inference.policy import LoadPolicy
from serve_app.inference.predictor import open_predictor
from serve_app.inference.trial import TrialOrder

_PR_SET_PDEATHSIG = 1
_NICENESS = 5
"""A lower priority than the replica, which answers requests with the old model."""


def main() -> None:
    """Run one trial."""
    answer_fd = os.dup(1)
    os.dup2(2, 1)  # keeps the output of libraries out of the answer
    _yield_to_replica()
    order = _order(sys.stdin.buffer)
    _limit(order)
    files = {name: sys.stdin.buffer.read(size) for name, size in order.sizes}
    os.write(answer_fd, orjson.dumps(_try(order, files)))
    os._exit(0)  # runs no exit handlers of a model


def _try(order: TrialOrder, files: dict[str, bytes]) -> dict[str, object]:
    try:
        open_predictor(
            replace(order.bundle, files=files), LoadPolicy(allow_joblib=order.allow_joblib, backend=order.backend, verify=None)
        )
    except BundleRefused as error:
        reason = "memory" if error.reason == "load" and any(map(_is_memory, _chain(error))) else error.reason
        return {"reason": reason, "message": str(error), "final": error.final}
    except MemoryError:
        return {"reason": "memory", "message": "", "final": True}
    except Exception as error:
        return {"reason": "load", "message": f"the model cannot be loaded ({type(error).__name__})", "final": True}
    return {"reason": None, "message": "", "final": True}


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_memory(error: BaseException) -> bool:
    """Whether the error means a lack of memory. ONNX Runtime has no special error for it."""
    text = str(error)
    return isinstance(error, MemoryError) or "bad_alloc" in text or "bad allocation" in text or "Failed to allocate memory" in text


def _order(stream: BinaryIO) -> TrialOrder:
    order = pickle.loads(stream.read(int.from_bytes(stream.read(8), "big")))  # noqa: S301, written by the replica, not by a model
    assert isinstance(order, TrialOrder)
    return order


def _yield_to_replica() -> None:
    """End with the replica, be the first process to kill when memory is short, and have a lower priority than requests."""
    parent = os.getppid()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    with suppress(OSError):
        os.nice(_NICENESS)


def _limit(order: TrialOrder) -> None:
    """Limit memory and time, and prevent writes to files and core dumps."""
    limits = {resource.RLIMIT_DATA: order.memory_bytes, resource.RLIMIT_FSIZE: 0, resource.RLIMIT_CORE: 0}
    for kind, limit in limits.items():
        with suppress(OSError, ValueError):
            resource.setrlimit(kind, (limit, limit))
    signal.setitimer(signal.ITIMER_REAL, order.seconds + 1)  # in case the replica cannot kill the process


if __name__ == "__main__":
    main()
