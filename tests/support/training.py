"""Trainings as a user starts them, `python -m training`, and one that dies at a chosen moment.

python -m tests.support.training die MODEL_DIR AT     trains, and kills itself at the AT-th step or change of the store
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.server import ROOT

SECONDS = 300.0
SMALL = ("--n-estimators", "10")
"""A forest that grows fast, and is good enough."""


def environment(folder: Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_") and name != "RAY_ADDRESS"}
    return {**kept, "PYTHONPATH": str(ROOT), "MODEL_DIR": str(folder / "models"), **more}


def start(folder: Path, *arguments: str, **more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "training", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, env=environment(folder, **more), stdout=pipe, stderr=pipe, text=True)


def train(folder: Path, *arguments: str, code: int = 0, **more: str) -> subprocess.CompletedProcess[str]:
    """Run to the end in `folder`, whose `models` is the store; an AssertionError with the output unless it ends by `code`."""
    with start(folder, *arguments, **more) as process:
        try:
            out, err = process.communicate(timeout=SECONDS)
        except BaseException:
            process.kill()
            raise
    assert process.returncode == code, f"ended with {process.returncode}, not {code}:\n{out}\n{err}"
    assert "Traceback" not in err
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def complaint(done: subprocess.CompletedProcess[str]) -> str:
    """The one sentence that a failed training ends with."""
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    assert done.stderr.rstrip().endswith(lines[0])
    return lines[0].removeprefix("error: ")


def _die(model_dir: Path, at: int) -> None:
    """Count the steps of the pipeline and whatever touches the store's files; be gone at the `at`-th."""
    from training import pipeline
    from training.train_options import TrainOptions

    passed = 0

    def count() -> None:
        nonlocal passed
        passed += 1
        if passed == at:
            os.kill(os.getpid(), signal.SIGKILL)

    @contextmanager
    def progress(_: str) -> Iterator[None]:
        count()
        yield

    inside = str(model_dir)

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("open", "os.rename", "os.symlink", "os.mkdir", "os.remove", "os.rmdir") and str(arguments[0]).startswith(
            inside
        ):
            count()

    sys.addaudithook(audit)
    pipeline.train(TrainOptions(n_estimators=3, model_dir=model_dir, no_tracking=True, force=True), progress)
    sys.stdout.write(f"survived {passed}\n")


if __name__ == "__main__":
    assert sys.argv[1] == "die"
    _die(Path(sys.argv[2]), int(sys.argv[3]))
