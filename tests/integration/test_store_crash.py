"""A publisher that dies, or whose disk fails, at any point: the store serves the old model or the new one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from serve_app.artifacts.bundle import read_bundle
from serve_app.artifacts.names import JOBLIB, LEGACY_FILES, MANIFEST, METRICS
from serve_app.artifacts.store import BUNDLES, Store
from tests.support.figures import note
from tests.support.publisher import publish, texts

KEEP = 2
PUBLISHER = [sys.executable, "-m", "tests.support.publisher"]


def empty_store(root: Path) -> None:
    root.mkdir()


def full_store(root: Path) -> None:
    """As many bundles as are kept, so that a publication removes one."""
    for text in ("oldest", "older", "old"):
        publish(Store(root, keep=KEEP), text)


def plain_store(root: Path) -> None:
    root.mkdir()
    (root / JOBLIB).write_bytes(b"old" + b"." * 100)
    (root / METRICS).write_text('{"text": "old"}')
    (root / MANIFEST).write_text('{"text": "old", "feature_names": ["x"], "mlflow_model_version": "4"}')


STORES = pytest.mark.parametrize("fill", [empty_store, full_store, plain_store])


def attempts(mode: str, template: Path) -> list[dict[str, Any]]:
    """What became of one publisher for each call that changes the disk; the last one got through."""
    done = subprocess.run([*PUBLISHER, mode, template, str(KEEP)], capture_output=True, text=True, check=True, timeout=200)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert found[-1]["outcome"] == "published"
    return found[:-1]


def served(store: Store) -> str | None:
    """The one text that all parts of the served model say."""
    bundle = store.current()
    if bundle is None:
        return None
    (text,) = texts(bundle)
    return text


def by_the_names_of_old(root: Path) -> set[str]:
    said = {json.loads((root / name).read_bytes())["text"] for name in (METRICS, MANIFEST)}
    return said | {(root / JOBLIB).read_bytes().partition(b".")[0].decode()}


def tree(root: Path) -> dict[str, bytes | None]:
    inside = (path for path in root.rglob("*") if path.name != ".lock")
    return {str(path.relative_to(root)): path.read_bytes() if path.is_file() else None for path in inside}


def assert_whole(store: Store) -> None:
    """Every bundle is proven, and nothing is there that does not belong."""
    for entry in store.entries():
        assert len(texts(read_bundle(entry.folder))) == 1
    names = {path.name for path in store.root.iterdir()}
    assert names == {BUNDLES, "current", ".lock", *LEGACY_FILES}
    assert {path.name for path in (store.root / BUNDLES).iterdir()} == {entry.folder.name for entry in store.entries()}


@STORES
def test_a_publisher_killed_at_any_call_leaves_the_old_model_or_the_new_and_the_next_one_clears_up(
    fill: Any, tmp_path: Path
) -> None:
    fill(tmp_path / "template")
    before = served(Store(tmp_path / "template"))
    deaths = attempts("die", tmp_path / "template")
    assert len(deaths) >= 50
    note(f"killed at {len(deaths)} calls")
    seen = []
    for death in deaths:
        assert death["outcome"] == "killed"
        store = Store(death["root"], keep=KEEP)
        seen.append(served(store))
        assert seen[-1] in (before, "new"), death
        if seen[-1] is not None:
            assert by_the_names_of_old(store.root) == {seen[-1]}, death
        version = publish(store, "next")
        assert version == max(entry.version for entry in store.entries())
        assert served(store) == "next"
        assert by_the_names_of_old(store.root) == {"next"}
        assert_whole(store)
        assert store.roll_back().version < version if len(store.entries()) > 1 else seen[-1] is None
    assert seen == sorted(seen, key=["new", before].index, reverse=True), "the model moved more than once"
    assert set(seen) == {before, "new"}


@STORES
def test_a_publisher_whose_disk_fails_at_any_call_says_so_and_changes_nothing(fill: Any, tmp_path: Path) -> None:
    template = tmp_path / "template"
    fill(template)
    before, untouched = served(Store(template)), tree(template)
    failures = attempts("fail", template)
    told = [failure for failure in failures if failure["outcome"] != "published"]
    assert len(told) >= 30
    note(f"its disk failed at {len(failures)} calls")
    for failure in failures:
        store = Store(failure["root"], keep=KEEP)
        if failure["outcome"] == "published":  # the model was served already; what failed was clearing up
            assert served(store) == "new", failure
        else:
            assert str(store.root) in failure["outcome"], failure
            assert not failure["outcome"].startswith("surprise"), failure
            assert served(store) == before, failure
            if fill is full_store:
                assert tree(store.root) == untouched, failure
        publish(store, "next")
        assert served(store) == "next"
        assert_whole(store)


def test_a_publisher_killed_from_outside_at_any_moment_leaves_a_whole_store(tmp_path: Path) -> None:
    store = Store(tmp_path / "models", keep=3)
    highest = 0
    for turn in range(12):
        with subprocess.Popen([*PUBLISHER, "loop", store.root, "3", "100000"], stdout=subprocess.PIPE) as publisher:
            assert publisher.stdout is not None
            published = [int(publisher.stdout.readline()) for _ in range(1 + turn)]
            publisher.kill()
        assert published[0] > highest
        text = served(store)
        assert text is not None
        assert by_the_names_of_old(store.root) == {text}
        highest = publish(store, "next")
        assert served(store) == "next"
        assert_whole(store)
