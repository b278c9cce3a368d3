"""docs/operations.md, word by word: every block marked `bash` is run, in order, on an empty namespace."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support import cluster
from tests.support.cluster import make

pytestmark = [pytest.mark.long, pytest.mark.timeout(2400)]


def test_every_command_of_the_operations_page_works(tmp_path: Path) -> None:
    blocks = re.findall(r"^```bash\n(.*?)^```", (cluster.ROOT / "docs" / "operations.md").read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 6
    assert make("k8s-clean").code == 0
    # A copy, so that the page's secret.yaml does not replace a real one.
    here = tmp_path / "iris-api"
    here.mkdir()
    for name in ("Makefile", "kuberay", "requirements"):
        source = cluster.ROOT / name
        _ = shutil.copytree(source, here / name) if source.is_dir() else shutil.copy(source, here / name)
    environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "ARGS")}
    try:
        for block in blocks:
            process = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", block], cwd=here, env=environment, capture_output=True, text=True, check=False
            )
            assert process.returncode == 0, f"{block}\n{process.stdout}{process.stderr}"
            if "curl" in block:
                assert '"prediction":"setosa"' in process.stdout
    finally:
        make("k8s-clean")
