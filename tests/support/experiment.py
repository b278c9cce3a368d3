"""A fault under load: constant load before, during and after it, and the check of the whole history."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from serve_app.artifacts.bundle import read_bundle
from serve_app.artifacts.store import Entry, Store
from serve_app.inference.predictor import open_predictor
from tests.support.checker import DOCUMENTED, Report, check_history
from tests.support.figures import note
from tests.support.load import Load, open_loop
from tests.support.models import A_FLOWER
from tests.support.native import answer_row
from tests.support.policies import ALLOW_ALL
from tests.support.server import Server
from tests.support.waiting import until

RATE = float(os.environ.get("IRIS_TEST_RATE", "40"))
"""Requests a second."""


def served(store: Store) -> Entry:
    return next(entry for entry in store.entries() if entry.served)


def expected_bodies(*entries: Entry) -> dict[str, str]:
    """The body that each version must respond to A_FLOWER, computed here from its bundle."""
    body = json.dumps(A_FLOWER).encode()
    return {
        str(entry.version): answer_row(open_predictor(read_bundle(entry.folder), ALLOW_ALL), body).decode() for entry in entries
    }


@contextlib.contextmanager
def constant_load(server: Server, store: Store, tmp_path: Path, key: str, *, rate: float = RATE) -> Iterator[Load]:
    with open_loop(server.url, A_FLOWER, key=key, rate=rate, timeout=20, history=tmp_path / "history.jsonl") as load:
        load.published.append((0.0, str(served(store).version)))
        until(lambda: load.answered > rate, seconds=60, what="a second's responses before the fault")
        yield load
        wait_for_responses(load, rate)


def wait_for_responses(load: Load, count: float) -> None:
    """Until so many more right responses have come."""
    before = load.answered
    until(lambda: load.answered >= before + count, seconds=120, what=f"{count:g} responses")


def checked(load: Load, store: Store, what: str, *entries: Entry, documented: frozenset[int] = DOCUMENTED) -> Report:
    """The report on a history without violations; `entries` are the versions that were served beside the one served now."""
    expected = expected_bodies(served(store), *entries)
    report = check_history(load.history, expected, load.published, minimum=100, documented=documented)
    note(f"{what}: {report}")
    assert not report.violations, report.violations[:5]
    return report
