from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from serve_app.artifacts.names import REPORT
from serve_app.artifacts.store import Store
from serve_app.artifacts.volume import Volume, read_volume
from serve_app.inference.slot import Slot
from serve_app.telemetry.collector import MetricsCollector
from tests.support.policies import ALLOW_ALL

AT = "2026-03-01T12:00:00+00:00"


@pytest.mark.parametrize(
    ("accepted", "forced", "verdict"), [(True, False, "accepted"), (False, True, "forced"), (False, False, "refused")]
)
def test_the_last_verdict_and_the_free_space_are_told(tmp_path: Path, accepted: bool, forced: bool, verdict: str) -> None:
    (tmp_path / REPORT).write_bytes(orjson.dumps({"accepted": accepted, "forced": forced, "trained_at": AT}))
    accounts = MetricsCollector(Slot(Store(tmp_path), policy=ALLOW_ALL), tmp_path)
    accounts.poll_store()
    found = {(sample.name, *sample.labels.values()): sample.value for family in accounts.collect() for sample in family.samples}
    told = {name: found["training_last_verdict", name] for name in ("accepted", "forced", "refused")}
    assert told == {name: float(name == verdict) for name in told}
    assert found["training_last_timestamp_seconds",] == 1772366400
    assert 0 < found["model_store_free_bytes",] <= found["model_store_size_bytes",]


@pytest.mark.parametrize("report", [None, b"rubbish", b"[]", b"{}", orjson.dumps({"accepted": True, "trained_at": None})], ids=str)
def test_a_report_that_is_missing_or_damaged_tells_nothing(tmp_path: Path, report: bytes | None) -> None:
    if report is not None:
        (tmp_path / REPORT).write_bytes(report)
    found = read_volume(tmp_path)
    assert (found.verdict, found.verdict_at) == (None, None)
    assert found.free is not None


def test_a_folder_that_is_not_there_tells_nothing(tmp_path: Path) -> None:
    assert read_volume(tmp_path / "gone") == Volume()
