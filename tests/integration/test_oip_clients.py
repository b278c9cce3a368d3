"""The published clients of the Open Inference Protocol talk to the application on real Ray Serve."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.support.models import logistic_store
from tests.support.server import HEADERS, KEY, ROOT, Server, serving

PYTHON = Path(os.environ.get("CLIENTS_PYTHON") or ROOT / ".venv/clients/bin/python").absolute()
"""The environment of the clients; `make test-integration` makes it. They need an older protobuf than Ray."""
MLSERVER_PYTHON = Path(os.environ.get("MLSERVER_PYTHON") or ROOT / ".venv/clients-mlserver/bin/python").absolute()
"""The same for MLServer, which needs an older FastAPI than KServe."""
PROGRAM = ROOT / "tests/support/oip_clients.py"
ROWS = [[5.1, 3.5, 1.4, 0.2], [6.8, 2.8, 4.8, 1.4], [7.7, 2.6, 6.9, 2.3]]
NAMES = ("sepal_length", "sepal_width", "petal_length", "petal_width")
LABELS = [["setosa"], ["versicolor"], ["virginica"]]

pytestmark = pytest.mark.skipif(
    not (PYTHON.exists() and MLSERVER_PYTHON.exists()), reason="the clients are not installed; make test-integration installs them"
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    store = logistic_store(tmp_path_factory.mktemp("models"))
    with serving(store.root, tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture(scope="module")
def shares(server: Server) -> list[list[float]]:
    """The probabilities of ROWS as the native protocol answers them."""
    body = {"instances": [dict(zip(NAMES, row, strict=True)) for row in ROWS]}
    reply = httpx2.post(f"{server.url}/predict/batch", json=body, headers=HEADERS)
    return [list(each["probabilities"].values()) for each in reply.json()["predictions"]]


def said(server: Server, client: str, python: Path = PYTHON) -> dict[str, Any]:
    """What a client says of its calls."""
    command = [str(python), str(PROGRAM), client, server.url.removeprefix("http://"), KEY]
    environment = {"PATH": os.environ["PATH"], "NO_PROXY": "127.0.0.1", "HOME": os.environ.get("HOME", "/")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def test_the_client_of_triton(server: Server, shares: list[list[float]]) -> None:
    result = said(server, "triton")
    assert result["live"] is result["ready"] is result["model ready"] is True
    assert result["another version ready"] is False
    assert "binary_tensor_data" in result["extensions"]
    assert [each["name"] for each in result["metadata"]["inputs"]] == list(NAMES)
    assert [(each["name"], each["version"], each["state"]) for each in result["index"]] == [("IrisClassifier", "1", "READY")]
    for call in ("binary", "binary, version", "json", "binary in, json out", "columns", "gzip", "deflate", "compressed answer"):
        assert result[call] == {"predict": LABELS, "predict_proba": shares}, call
    assert result["float32"]["predict"] == LABELS
    for row, expected in zip(result["float32"]["predict_proba"], shares, strict=True):
        assert row == pytest.approx(expected, abs=1e-6)
    assert [[text.split(":")[2] for text in row][:1] for row in result["ranked"]["predict_proba"]] == LABELS
    assert all(len(row) == 2 for row in result["ranked"]["predict_proba"])
    assert result["id"] == "r7"
    assert "sepal_length[0]" in result["bad value"]
    assert "sepal_length[0]" in result["missing"]
    assert "[rows, 4]" in result["bad shape"]
    assert "X-API-Key" in result["no key"]
    assert result["load"]
    assert result["unload"]
    for call in ("bad value", "missing", "bad shape", "no key", "load", "unload"):
        assert "JSON" not in result[call], call  # the client says so of an error that it cannot read


def test_the_asynchronous_client_of_triton(server: Server, shares: list[list[float]]) -> None:
    result = said(server, "triton-aio")
    assert result["live"] is result["ready"] is result["model ready"] is True
    assert result["binary"] == result["json"] == {"predict": LABELS, "predict_proba": shares}
    assert result["index"][0]["state"] == "READY"


def test_the_client_of_kserve(server: Server, shares: list[list[float]]) -> None:
    result = said(server, "kserve")
    assert result["live"] is result["ready"] is result["model ready"] is True
    assert result["binary"] == result["json"] == {"predict": LABELS, "predict_proba": shares}
    assert "sepal_length[0]" in result["bad value"]
    assert "403" in result["wrong key"]


def test_the_codecs_and_the_command_of_mlserver(server: Server, shares: list[list[float]]) -> None:
    result = said(server, "mlserver", MLSERVER_PYTHON)
    assert result["columns"] == result["tensor"] == {"predict": LABELS, "predict_proba": shares}
    assert result["float32"]["predict"] == LABELS
    assert result["one output"] == shares
    by_row = [{"predict": [label], "predict_proba": [row]} for label, row in zip(LABELS, shares, strict=True)]
    assert result["infer"] == result["infer, merged"] == result["infer, binary"] == by_row
