"""A fault under load: constant traffic before, during and after it, and the judgement of the whole history."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from serve_app.artifacts.bundle import read_bundle
from serve_app.artifacts.store import Entry, Store
from serve_app.inference.predictor import open_predictor
from tests.support.checker import DOCUMENTED, Load, Report, judge, load
from tests.support.figures import note
from tests.support.models import A_FLOWER
from tests.support.native import answer_row
from tests.support.policies import ALLOW_ALL
from tests.support.server import Server
from tests.support.waiting import until

RATE = float(os.environ.get("IRIS_TEST_RATE", "40"))


def served(store: Store) -> Entry:
    return next(entry for entry in store.entries() if entry.served)


def golden(*entries: Entry) -> dict[str, str]:
    """What each version must answer, computed here from its bundle."""
    body = json.dumps(A_FLOWER).encode()
    return {
        str(entry.version): answer_row(open_predictor(read_bundle(entry.folder), ALLOW_ALL), body).decode() for entry in entries
    }


@contextlib.contextmanager
def traffic(server: Server, store: Store, tmp_path: Path, key: str, *, rate: float = RATE) -> Iterator[Load]:
    with load(server.url, A_FLOWER, tmp_path / "history.jsonl", key=key, rate=rate, timeout=20) as record:
        record.published.append((0.0, str(served(store).version)))
        until(lambda: record.right_answers() > rate, seconds=60, what="a second's answers before the fault")
        yield record
        more(record, rate)


def more(record: Load, count: float) -> None:
    """Until so many more right answers have come."""
    before = record.right_answers()
    until(lambda: record.right_answers() >= before + count, seconds=120, what="answers after the fault")


def judged(record: Load, store: Store, what: str, *entries: Entry, documented: frozenset[int] = DOCUMENTED) -> Report:
    report = judge(record.lines(), golden(served(store), *entries), record.published, minimum=100, documented=documented)
    note(f"{what}: {report}")
    assert not report.violations, report.violations[:5]
    return report
