"""A pickle that dies, hangs or swells while it is loaded takes its trial with it and nothing else."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from serve_app.artifacts.names import JOBLIB
from serve_app.artifacts.store import Store
from serve_app.inference.policy import LoadPolicy, TrialLimits
from serve_app.inference.slot import Slot
from tests.support.figures import note
from tests.support.models import bundle_files, bundle_manifest, forest, logistic_store, publish_iris
from tests.support.policies import load_policy
from tests.support.processes import resident

MEGABYTE = 1_000_000
SECRET = "a key that no model should see"


def with_trial(seconds: float) -> LoadPolicy:
    return load_policy(trial=TrialLimits(seconds, memory_share=0.5))


def pickle_of(code: str) -> bytes:
    """A pickle that runs code."""
    return b"cbuiltins\nexec\n(V" + code.encode() + b"\ntR."


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return logistic_store(tmp_path / "models")


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("code", "seconds"),
    [
        ("import os; os._exit(3)", 60.0),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", 60.0),
        ("import time; time.sleep(1000)", 8.0),
        ("x = bytearray(3 * 10**9)", 60.0),
        ("import os; assert 'API_KEY' not in os.environ; os._exit(4)", 60.0),
    ],
    ids=["exit", "crash", "sleep", "memory", "environment"],
)
def test_a_pickle_takes_only_its_trial_with_it(store: Store, monkeypatch: pytest.MonkeyPatch, code: str, seconds: float) -> None:
    monkeypatch.setenv("API_KEY", SECRET)
    slot = Slot(store, policy=with_trial(seconds))
    assert slot.refresh()
    before = resident(os.getpid())
    store.publish({**bundle_files(forest()), JOBLIB: pickle_of(code)}, bundle_manifest())
    started = time.monotonic()
    assert not slot.refresh()
    took = time.monotonic() - started
    assert slot.refusal is not None
    assert slot.refusal.reason == "load"
    assert slot.predictor is not None
    assert slot.predictor.version == "1"
    assert resident(os.getpid()) - before < 50 * MEGABYTE
    assert took < seconds + 5
    if "API_KEY" in code:
        assert "exit code 4" in slot.refusal.message  # else the assertion in the pickle failed
    note(f"{code.rpartition(';')[2].strip()}: refused after {took:.1f} s")
    store.roll_back()
    assert not slot.refresh()
    assert slot.refusal is None


@pytest.mark.parametrize("onnx", [True, False], ids=["onnx", "scikit-learn"])
def test_a_good_model_passes_its_trial(store: Store, onnx: bool) -> None:
    publish_iris(store, forest(), onnx=onnx)
    slot = Slot(store, policy=with_trial(120))
    started = time.monotonic()
    assert slot.refresh(), slot.problem
    note(f"a {'converted' if onnx else 'pickled'} forest: trial and load {1000 * (time.monotonic() - started):.0f} ms")


def test_a_signature_and_settings_are_checked_before_a_trial(store: Store) -> None:
    store.publish({**bundle_files(forest()), JOBLIB: b"rubbish"}, bundle_manifest())
    slot = Slot(store, policy=load_policy(allow_joblib=False, trial=TrialLimits(0.001, 0.5)))
    assert not slot.refresh()
    assert slot.refusal is not None
    assert slot.refusal.reason == "forbidden"


def test_a_slot_that_is_closed_ends_its_load(store: Store) -> None:
    import threading

    store.publish({**bundle_files(forest()), JOBLIB: pickle_of("import time; time.sleep(1000)")}, bundle_manifest())
    slot = Slot(store, policy=with_trial(300))
    refresh = threading.Thread(target=slot.refresh)
    refresh.start()
    slot.close()
    refresh.join(30)
    assert not refresh.is_alive()


class Hanging:
    """A source whose volume does not answer."""

    def __init__(self) -> None:
        self.reads = 0

    def pointer(self) -> str:
        return "bundles/1-x"

    def read(self, pointer: str, policy: LoadPolicy) -> None:
        self.reads += 1
        time.sleep(1000)


def test_a_bundle_that_cannot_be_read_does_not_hold_the_refresh_and_is_not_read_again_and_again() -> None:
    source = Hanging()
    slot = Slot(source, policy=with_trial(0.5))  # type: ignore[arg-type]
    age = slot.refreshed_at
    for _ in range(3):
        assert not slot.refresh()
        assert slot.refusal is not None
        assert slot.refusal.reason == "unreadable"
    assert source.reads == 1
    assert slot.refreshed_at == age
    assert slot.refresh_age_seconds() > 1
