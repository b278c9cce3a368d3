"""The notebook of the documentation is executed in a kernel of its own, and publishes what it says."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from serve_app.artifacts.store import Store

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "docs" / "notebooks" / "adopt.ipynb"


def code_cells(notebook: Any) -> dict[str, Any]:
    return {cell["id"]: cell for cell in notebook["cells"] if cell["cell_type"] == "code"}


def shown(cell: Any, kind: str) -> str:
    """What the last expression of a cell shows, in one media type."""
    return next(str(output["data"][kind]) for output in cell["outputs"] if output["output_type"] == "execute_result")


def test_the_notebook_is_kept_without_outputs() -> None:
    cells = code_cells(json.loads(NOTEBOOK.read_text()))
    assert len(cells) >= 4
    assert [(cell["outputs"], cell["execution_count"]) for cell in cells.values()] == [([], None)] * len(cells)


def test_the_notebook_publishes_a_model_whose_bundle_answers_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    for name in ("JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    folder = tmp_path / "work"
    folder.mkdir()
    client = nbclient.NotebookClient(notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
    client.execute(env={**os.environ, "PYTHONPATH": str(ROOT)})

    cells = code_cells(notebook)
    assert "<table>" in shown(cells["publish-code"], "text/html")
    assert "ONNX Runtime" in shown(cells["publish-code"], "text/html")
    assert shown(cells["version-code"], "text/plain") == "(1, ())"
    assert "leaves" in shown(cells["ask-code"], "text/plain")
    assert float(shown(cells["compare-code"], "text/plain")) <= 1e-9
    assert [(entry.version, entry.served) for entry in Store(folder / "models").entries()] == [(1, True)]
