"""One real cluster for all tests of this tier: its namespace `mlops` is emptied, filled once, and emptied again at the end."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import cluster
from tests.support.cluster import make
from tests.support.outages import two_replicas, wait_until_whole


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "long: takes minutes more than the main story; left out of `make test-e2e`")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(900))


@pytest.fixture(scope="session")
def secret_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Secret as a user makes it from the example."""
    text = (cluster.ROOT / "kuberay" / "base" / "secret.yaml.example").read_text()
    file = tmp_path_factory.mktemp("secret") / "secret.yaml"
    file.write_text("".join(_with_key(line) for line in text.splitlines(keepends=True)))
    return file


def _with_key(line: str) -> str:
    return (
        line.replace("replace-me-with-openssl-rand-hex-32", secrets.token_hex(32)) if line.strip().startswith("API_KEY:") else line
    )


@pytest.fixture(scope="session")
def empty() -> None:
    """A cluster with the operator and nothing of ours."""
    result = make("k8s-clean")
    assert result.code == 0, result.output


@pytest.fixture(scope="session")
def deployed(empty: None, secret_file: Path) -> str:
    """The whole system, without a model; what `make` said."""
    result = make("k8s-deploy-mlflow", K8S_SECRET=str(secret_file))
    assert result.code == 0, result.output
    cluster.open_port()
    return result.output


@pytest.fixture(scope="session")
def trained(deployed: str) -> str:
    """The whole system with its first model; what `make` said."""
    result = make("k8s-train")
    assert result.code == 0, result.output
    return result.output


@pytest.fixture(scope="session")
def key(deployed: str) -> str:
    return cluster.api_key()


@pytest.fixture(scope="module")
def two(trained: str) -> Iterator[None]:
    """The whole system with two replicas, whatever the load."""
    with two_replicas():
        yield


@pytest.fixture
def whole(two: None) -> Iterator[None]:
    """Before and after each test everything runs, or the next one would be blamed."""
    wait_until_whole()
    yield
    wait_until_whole()
