"""Readers need no lock: whatever publishers do, each read is one whole model."""

from __future__ import annotations

import contextlib
import itertools
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve_app.artifacts.bundle import read_bundle
from serve_app.artifacts.store import Store
from serve_app.errors import StoreError
from tests.support.publisher import publish, texts

COMMAND = [sys.executable, "-m", "tests.support.publisher"]


@contextlib.contextmanager
def reading(root: Path, *, processes: int) -> Iterator[list[int]]:
    """Processes that read and verify all the time; at the end, how often each did."""
    counts: list[int] = []
    readers = [
        subprocess.Popen([*COMMAND, "read", root], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(processes)
    ]
    for reader in readers:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "reading\n"
    try:
        yield counts
    finally:
        for reader in readers:
            said, complaint = reader.communicate(timeout=60)
            assert reader.returncode == 0, complaint
            counts.append(int(said))


@pytest.mark.parametrize("keep", [1, 1000])
def test_while_models_are_published_every_read_is_one_whole_model(tmp_path: Path, keep: int) -> None:
    store = Store(tmp_path / "models", keep=keep)
    publish(store, "first")
    done = threading.Event()
    seen: set[str] = set()
    failed: list[Exception] = []

    def read() -> None:
        while not done.is_set():
            try:
                bundle = store.current()
                assert bundle is not None
                (text,) = texts(bundle)
                seen.add(text)
            except Exception as error:
                failed.append(error)

    threads = [threading.Thread(target=read)]
    with reading(store.root, processes=2) as counts:
        for thread in threads:
            thread.start()
        for number in range(50):
            publish(store, f"model {number}")
        done.set()
        for thread in threads:
            thread.join()
    assert failed == []
    assert len(seen) > 1
    assert min(counts) > 0


def test_while_the_pointer_moves_to_and_fro_every_read_is_one_whole_model(tmp_path: Path) -> None:
    store = Store(tmp_path / "models")
    for text in ("a", "b"):
        publish(store, text)
    with reading(store.root, processes=2) as counts:
        for _ in range(100):
            assert store.roll_back().version == 1
            assert store.promote(2).version == 2
    assert min(counts) > 0


def test_publishers_that_work_at_the_same_time_get_numbers_of_their_own_and_lose_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "models", keep=1000)
    with reading(store.root, processes=1):
        publishers = [subprocess.Popen([*COMMAND, "loop", store.root, "1000", "40"], stdout=subprocess.PIPE) for _ in range(3)]
        versions = [[int(line) for line in publisher.communicate(timeout=120)[0].split()] for publisher in publishers]
    assert sorted(itertools.chain(*versions)) == list(range(1, 121))
    assert all(own == sorted(own) for own in versions)
    entries = store.entries()
    assert [entry.version for entry in entries if entry.served] == [120]
    assert len({text for entry in entries for text in texts(read_bundle(entry.folder))}) == 120


def test_publishing_and_moving_the_pointer_at_the_same_time_never_points_to_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "models", keep=2)
    for text in ("a", "b"):
        publish(store, text)
    publisher = subprocess.Popen([*COMMAND, "loop", store.root, "2", "60"], stdout=subprocess.PIPE)
    moved = 0
    while publisher.poll() is None:
        with contextlib.suppress(StoreError):  # nothing older is kept at this moment
            moved += store.roll_back().served
        assert store.current() is not None
    publisher.communicate()
    assert publisher.returncode == 0
    assert moved > 0
    assert len(store.entries()) == 2
