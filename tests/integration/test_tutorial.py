"""The tutorial for a laptop, word by word: each command in its order, in a fresh copy of the project, with what the page shows."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.support.pages import Block, blocks_of
from tests.support.processes import OF_MAKE, kill_session
from tests.support.server import PYTHON, ROOT, START_SECONDS, environment, free_port
from tests.support.waiting import until

PAGE = ROOT / "docs" / "tutorial" / "laptop.md"
CLONE, SERVE = "git clone https://github.com/iris-api/iris-api\ncd iris-api\n", "make serve\n"
REFUSED = 3
"""The exit code of a training whose model is not published."""
CHANGING = (
    (re.compile(r"\d{4}-\d\d-\d\dT[\d:+-]+"), "TIME"),
    (re.compile(r"\b(?=[a-f\d]*\d)[a-f\d]{12}(?:[a-f\d]{20})?\b"), "DIGEST"),
    (re.compile(r"\d+\.\d+"), "NUMBER"),
    (re.compile(r"\s+"), " "),
)
"""What differs between two machines or two runs."""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder with the files of the project that git knows, as a clone has them."""
    folder = tmp_path / "iris-api"
    folder.mkdir()
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    archive = subprocess.run(["tar", "-c", "--null", "-T", "-"], cwd=ROOT, input=names, capture_output=True, check=True).stdout
    subprocess.run(["tar", "-x"], cwd=folder, input=archive, check=True)
    return folder


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The environment of these tests, with the marks that tell make that everything is installed."""
    folder = tmp_path / "environment"
    folder.mkdir()
    for entry in Path(sys.prefix).iterdir():
        if not entry.name.startswith("."):
            (folder / entry.name).symlink_to(entry)
    for mark in (".uv", ".train", ".serve"):
        (folder / mark).touch()
    return folder


@pytest.fixture
def variables(clone: Path, installed: Path, tmp_path: Path) -> dict[str, str]:
    """The environment of a user's terminals: a port that is free, and nothing that only the tests set."""
    own = (*OF_MAKE, "API_KEY", "IRIS_LOG_FORMAT", "MLFLOW_TRACKING_URI", "MODEL_DIR")
    inherited = {name: value for name, value in environment(tmp_path).items() if name not in own}
    return {
        **inherited,
        "PORT": str(free_port()),
        "PYTHONPATH": str(clone),
        "SERVE_PYTHON": PYTHON,
        "VENV": str(installed),
    }


@contextlib.contextmanager
def second_terminal(folder: Path, variables: dict[str, str]) -> Iterator[None]:
    """Run `make serve` until the block ends, as a user does who presses Ctrl-C then."""
    output = folder.with_name("serve.log")
    with output.open("wb") as file:
        process = subprocess.Popen(
            ["bash", "-c", SERVE], cwd=folder, env=variables, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        until(lambda: answers(process, variables["PORT"]), seconds=START_SECONDS, what="an answer of `make serve`")
        yield
    except BaseException:
        sys.stderr.write(output.read_text(errors="replace")[-8000:])
        raise
    finally:
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(process.pid, signal.SIGINT)
            process.wait(30)
        kill_session(process.pid)
        process.wait()


def answers(process: subprocess.Popen[bytes], port: str) -> bool:
    assert process.poll() is None, f"`make serve` ended with {process.returncode}"
    with contextlib.suppress(httpx2.HTTPError):
        return httpx2.get(f"http://127.0.0.1:{port}/readyz", timeout=5).status_code == 200
    return False


def stable(line: str) -> str:
    for pattern, replacement in CHANGING:
        line = pattern.sub(replacement, line)
    return line.strip()


def check(block: Block, folder: Path, variables: dict[str, str]) -> None:
    """Run the commands; their exit code and each line that the page shows must come."""
    commands = block.commands.replace("127.0.0.1:8000", f"127.0.0.1:{variables['PORT']}")
    expected = REFUSED if block.shown.startswith("refused") else 0
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", commands],
        cwd=folder,
        env=variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    told = f"{commands}\n{done.stdout}{done.stderr}"
    # make has an exit code of its own and names that of the command.
    code = int(match[1]) if (match := re.search(r"^make: \*\*\* .*\] Error (\d+)$", done.stderr, re.MULTILINE)) else done.returncode
    assert code == expected, told
    lines = {stable(line) for line in (done.stdout + done.stderr).splitlines()}
    assert [line for line in block.shown.splitlines() if stable(line) not in lines] == [], told


def wait_for(version: str, port: str) -> None:
    """Wait until the server answers with this version."""

    def is_served() -> bool:
        document = httpx2.get(f"http://127.0.0.1:{port}/readyz", timeout=5).json()
        return bool(document["model_version"] == version)

    until(is_served, seconds=20, what=f"version {version}")


@pytest.mark.timeout(900)
def test_each_command_does_what_the_page_shows(clone: Path, variables: dict[str, str]) -> None:
    first, *blocks = blocks_of(PAGE, "bash", "sh")
    assert first.commands == CLONE
    served = 0
    with contextlib.ExitStack() as terminal:
        for block in blocks:
            if block.commands == SERVE:
                terminal.enter_context(second_terminal(clone, variables))
                served += 1
                continue
            check(block, clone, variables)
            if served and (told := re.search(r"^version (\d+) \(.*?\) is served", block.shown, re.MULTILINE)):
                wait_for(told[1], variables["PORT"])
    assert served == 1
    assert not (clone / ".venv").exists()
