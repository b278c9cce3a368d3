"""The pages, word by word: every block marked `bash` is run, in order, and every command that replaces an old one.

A page starts on an empty namespace, or on the whole system with a model. A comment `<!-- before: COMMAND -->` right before a block
is run first: what the text around the block says in words, such as that the namespace was emptied.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.support import cluster
from tests.support.cluster import make
from tests.support.pages import blocks_of
from tests.support.processes import OF_MAKE

pytestmark = [pytest.mark.long, pytest.mark.timeout(2400)]

EMPTY, TRAINED = "an empty namespace", "the whole system with a model"
PAGES: Mapping[str, str] = {
    "docs/tutorial/kubernetes.md": EMPTY,
    "docs/how-to/install.md": EMPTY,
    "kuberay/README.md": EMPTY,
    "docs/how-to/gitops.md": EMPTY,
    "docs/how-to/roll-back.md": TRAINED,
    "docs/how-to/upgrade.md": TRAINED,
    "docs/how-to/backup.md": TRAINED,
}
COPIED = ("Makefile", "docs", "kuberay", "monitoring", "requirements", "serve_app", "training")
ENDLESS = ("port-forward", "logs -f")
"""Commands that a user ends with Ctrl-C."""


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Path]:
    """A copy of the project, so that a page's secret.yaml does not replace a real one, beside an empty namespace."""
    folder = tmp_path / "iris-api"
    folder.mkdir()
    for name in COPIED:
        source = cluster.ROOT / name
        _ = shutil.copytree(source, folder / name) if source.is_dir() else shutil.copy(source, folder / name)
    (folder / "kuberay" / "base" / "secret.yaml").unlink(missing_ok=True)
    assert make("k8s-clean").code == 0
    try:
        yield folder
    finally:
        make("k8s-clean")


def run(commands: str, folder: Path, *, seconds: float = 900) -> str:
    """The output of commands as a user types them; one that goes on after `seconds` fails."""
    environment = {name: value for name, value in os.environ.items() if name not in OF_MAKE}
    process = subprocess.run(
        ["timeout", f"{seconds:.0f}", "bash", "-euo", "pipefail", "-c", commands],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, f"{commands}\n{process.stdout}{process.stderr}"
    return process.stdout


def prepare(folder: Path, start: str) -> None:
    if start == TRAINED:
        run("make k8s-secrets\nmake k8s-deploy-mlflow\nmake k8s-train", folder)


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_the_page_works(page: str, here: Path) -> None:
    if not (cluster.ROOT / page).is_file():
        pytest.skip(f"NOT TESTED: there is no page {page}")
    blocks = list(blocks_of(cluster.ROOT / page))
    assert blocks, f"{page} has no block that is marked `bash`"
    prepare(here, PAGES[page])
    for block in blocks:
        if block.before:
            run(block.before, here)
        output = run(block.commands, here)
        if "/predict" in block.commands:
            assert '"prediction":' in output


def replacements() -> list[str]:
    """The commands of the last column of the table from old to new."""
    text = (cluster.ROOT / "docs" / "reference" / "orchestration.md").read_text()
    table = text[text.index("| before | now | command |") :].split("\n\n")[0]
    return [row.rsplit("| `", 1)[1].removesuffix("` |") for row in table.splitlines()[2:]]


def test_every_command_that_replaces_an_old_one_works(here: Path) -> None:
    commands = [command for command in replacements() if "registry.example" not in command]
    assert len(commands) >= 20
    prepare(here, TRAINED)
    for command in commands:
        if any(word in command for word in ENDLESS):
            command = f"timeout 5 {command} || [ $? = 124 ]"
        run(command, here)
