"""The application on real Ray Serve keeps every point of the conformance suite; docs/how-to/clients.md has examples that answer."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance import grpc_points, rest_points
from tests.conformance.__main__ import main
from tests.support.examples import Example, command_of, examples_of, printed
from tests.support.models import logistic_store
from tests.support.server import KEY, ROOT, Server, free_port, serving

GRPC_PORT = free_port()
EXAMPLES = list(examples_of(ROOT / "docs/how-to/clients.md"))
CLIENTS = Path(os.environ.get("CLIENTS_PYTHON") or ROOT / ".venv/clients/bin/python").absolute()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    store = logistic_store(tmp_path_factory.mktemp("models"))
    with serving(store.root, tmp_path_factory.mktemp("server"), IRIS_GRPC_PORT=str(GRPC_PORT)) as server:
        yield server


def test_every_point_of_the_open_inference_protocol_is_kept(server: Server, tmp_path: Path) -> None:
    where = ["--url", server.url, "--grpc", f"127.0.0.1:{GRPC_PORT}", "--model", "IrisClassifier", "--header", f"X-API-Key: {KEY}"]
    status = main([*where, "--json", str(tmp_path / "results.json")])
    results = json.loads((tmp_path / "results.json").read_text())
    assert [each for each in results if each["outcome"] != "pass"] == []
    assert len(results) == len(rest_points.POINTS) + len(grpc_points.POINTS)
    assert status == 0


@pytest.mark.parametrize("number", range(len(EXAMPLES)), ids=[f"{each.language} {each.package}".strip() for each in EXAMPLES])
def test_an_example_of_the_page_of_clients_prints_what_it_says(server: Server, tmp_path: Path, number: int) -> None:
    example = EXAMPLES[number]
    program = example.program.replace("127.0.0.1:8765", server.url.removeprefix("http://")).replace("9765", str(GRPC_PORT))
    command = command_of(Example(example.language, example.package, program, ""), tmp_path / "Predict", CLIENTS)
    if command is None:
        pytest.skip(f"{example.package or example.language} is not installed")
    assert printed(command, {"API_KEY": KEY}).rstrip("\n") == example.output.rstrip("\n")  # a response ends without one


def test_the_page_of_clients_has_examples_of_every_language() -> None:
    assert len(EXAMPLES) == 19
    assert {each.language for each in EXAMPLES} == {"sh", "python", "js", "go", "java"}


def test_a_server_that_is_no_server_keeps_nothing(tmp_path: Path) -> None:
    assert main(["--url", f"http://127.0.0.1:{free_port()}", "--model", "m", "--json", str(tmp_path / "results.json")]) == 1
    assert {each["outcome"] for each in json.loads((tmp_path / "results.json").read_text())} == {"fail"}
    assert main([]) == 2
