"""A volume that is full, or read-only: one sentence, and the old model."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve_app.artifacts.bundle import read_bundle
from serve_app.artifacts.store import Store
from serve_app.errors import StoreError
from tests.support.publisher import publish, texts
from tests.support.volume import fill, mount, unmount


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "volume"
    folder.mkdir()
    if not mount(folder, "size=256k,nr_inodes=64"):
        pytest.skip("a small volume can be mounted by root only")
    yield folder
    unmount(folder)


def served(store: Store) -> str:
    bundle = store.current()
    assert bundle is not None
    (text,) = texts(bundle)
    return text


def tree(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


@pytest.mark.parametrize("free_bytes", [0, 4096, 12_288, 24_576])
def test_on_a_full_disk_nothing_changes_and_when_there_is_room_again_it_works(volume: Path, free_bytes: int) -> None:
    store = Store(volume)
    publish(store, "old")
    ballast = fill(volume, leave=free_bytes)
    before = tree(volume)
    for _ in range(3):
        with pytest.raises(StoreError, match=os.strerror(errno.ENOSPC)):
            publish(store, "new")
    assert tree(volume) == before
    assert served(store) == "old"
    ballast.unlink()
    publish(store, "new")
    assert served(store) == "new"


@pytest.mark.parametrize("free_names", range(9))
def test_on_a_disk_without_room_for_names_the_old_model_or_the_new_is_whole(volume: Path, free_names: int) -> None:
    store = Store(volume)
    publish(store, "old")
    for number in range(os.statvfs(volume).f_favail - free_names):
        (volume / f"ballast-{number}").touch()
    before = tree(volume)
    with contextlib.suppress(StoreError):
        publish(store, "new")
    assert served(store) == ("old" if tree(volume) == before else "new")
    for entry in store.entries():
        assert len(texts(read_bundle(entry.folder))) == 1


def test_a_store_on_a_read_only_volume_is_read_and_not_written(volume: Path) -> None:
    store = Store(volume)
    for text in ("older", "old"):
        publish(store, text)
    subprocess.run(["mount", "-o", "remount,ro", volume], check=True)
    assert served(store) == "old"
    assert [entry.version for entry in store.entries()] == [1, 2]
    for change in (lambda: publish(store, "new"), lambda: store.promote(1), store.roll_back):
        with pytest.raises(StoreError, match=os.strerror(errno.EROFS)):
            change()
    assert served(store) == "old"


def test_a_file_larger_than_the_system_allows_is_an_error_and_changes_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    publish(store, "old")
    before = tree(tmp_path)
    script = f"""
import resource, sys
from serve_app.errors import StoreError
from serve_app.artifacts.store import Store
from tests.support.publisher import publish
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
try:
    publish(Store({str(tmp_path)!r}), "new")
except StoreError as error:
    sys.exit(str(error))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 1
    assert os.strerror(errno.EFBIG) in done.stderr
    assert tree(tmp_path) == before
    assert served(store) == "old"
