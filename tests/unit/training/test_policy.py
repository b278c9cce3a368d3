"""The commands that move the store's pointer refuse what the replicas would refuse."""

from __future__ import annotations

from pathlib import Path

import pytest

from serve_app.artifacts.signing import signer
from serve_app.artifacts.store import Store
from serve_app.cli import main
from tests.support.hostile.signatures import key_pair
from tests.support.stores import publish


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Versions 1 (unsigned), 2 and 3 (signed), 4 (by a stranger); 2 is served, and the environment names the right key."""
    private, public = key_pair(tmp_path, "trainer")
    stranger, _ = key_pair(tmp_path, "stranger")
    store = Store(tmp_path / "models")
    publish(store, "unsigned")
    for text in ("signed", "signed again"):
        publish(store, text, sign=signer(private))
    publish(store, "by a stranger", sign=signer(stranger))
    store.promote(2)
    monkeypatch.setenv("MODEL_DIR", str(store.root))
    monkeypatch.setenv("IRIS_VERIFY_KEY", str(public))
    return store


def served(store: Store) -> int:
    (version,) = (entry.version for entry in store.entries() if entry.served)
    return version


@pytest.mark.parametrize("command", [["promote", "1"], ["promote", "4"], ["rollback"]])
def test_a_version_without_the_trusted_seal_does_not_become_the_served_one(
    store: Store, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    assert main(command) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "unsigned" in line
    assert served(store) == 2


def test_a_signed_version_is_promoted_and_rolled_back_to(store: Store) -> None:
    assert main(["promote", "3"]) == 0
    assert served(store) == 3
    assert main(["rollback"]) == 0
    assert served(store) == 2


def test_without_a_key_every_version_may_be_promoted(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IRIS_VERIFY_KEY")
    assert main(["promote", "1"]) == 0
    assert served(store) == 1


def test_a_pickle_is_not_promoted_where_replicas_may_not_unpickle(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("IRIS_ALLOW_JOBLIB", "false")
    assert main(["promote", "3"]) == 1
    assert "forbidden" in capsys.readouterr().err
    assert served(store) == 2


def test_a_key_that_is_none_is_wrong_usage(store: Store, tmp_path: Path) -> None:
    (tmp_path / "text.pem").write_text("no key")
    assert main(["promote", "3", "--verify-key", str(tmp_path / "text.pem")]) == 2
    assert served(store) == 2
