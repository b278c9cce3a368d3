"""More than a thousand damaged and malicious bundles: each is refused for the right reason before anything of it runs."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import joblib
import pytest

from serve_app.artifacts.signing import signer, verifier
from serve_app.artifacts.store import CURRENT, Store
from serve_app.inference.policy import LoadPolicy
from serve_app.inference.slot import Slot
from tests.support.figures import note
from tests.support.hostile.cases import Case
from tests.support.hostile.damage import damaged, pointers
from tests.support.hostile.graphs import graphs
from tests.support.hostile.manifests import goldens, manifests
from tests.support.hostile.packages import forbidden_packages, wrong_packages
from tests.support.hostile.pickles import pickles_of_other_libraries, proven_pickles, traps, unproven_pickles
from tests.support.hostile.signatures import badly_sealed, key_pair
from tests.support.models import A_FLOWER, bundle_files, bundle_manifest, logistic, logistic_store, write_legacy
from tests.support.native import answer_row
from tests.support.policies import ALLOW_ALL, load_policy

BODY = json.dumps(A_FLOWER).encode()
FLIPS = int(os.environ.get("IRIS_TEST_FLIPS", "110"))
KINDS = 10
"""Tests that call `all_are_refused`, each with bundles of another kind."""
tried: Counter[str] = Counter()
"""Bundles by the reason for which they were refused."""
kinds: set[str] = set()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return logistic_store(tmp_path / "models")


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


def point(store: Store, pointer: str) -> None:
    (store.root / "link").unlink(missing_ok=True)
    os.symlink(pointer, store.root / "link")
    os.replace(store.root / "link", store.root / CURRENT)


def all_are_refused(store: Store, cases: Iterable[Case], canary: Path, policy: LoadPolicy = ALLOW_ALL) -> int:
    """Point the store to one after the other: the good model keeps answering, and the reason is right."""
    slot = Slot(store, policy=ALLOW_ALL)
    assert slot.refresh()
    assert slot.predictor is not None
    served, answer, pointer = slot.predictor, answer_row(slot.predictor, BODY), store.pointer()
    slot.policy = policy
    wrong = []
    count = 0
    for one in cases:
        candidate = one.build(store.root)
        point(store, candidate)
        swapped = slot.refresh()
        reason = slot.refusal.reason if slot.refusal else None
        if swapped or reason not in one.reasons or slot.predictor is not served or answer_row(served, BODY) != answer:
            wrong.append(f"{one.name}: {reason}, expected {'/'.join(one.reasons)}")
        if os.path.lexists(canary):
            wrong.append(f"{one.name}: it was executed")
            canary.unlink()
        tried[reason or "served"] += 1
        kinds.add(os.environ["PYTEST_CURRENT_TEST"])
        count += 1
        for folder in (store.root / "bundles").glob("2-*"):
            folder.unlink() if folder.is_symlink() else shutil.rmtree(folder)
        assert pointer is not None
        point(store, pointer)
        slot.refresh()
        assert slot.refusal is None
    assert not wrong, "\n".join(wrong)
    return count


def test_a_damaged_bundle_is_refused_before_anything_is_parsed(store: Store, canary: Path) -> None:
    assert all_are_refused(store, damaged(FLIPS), canary) >= 600


def test_a_pointer_to_anything_but_a_bundle_of_this_store_is_refused(store: Store, canary: Path) -> None:
    assert all_are_refused(store, pointers(), canary) >= 30


def test_a_manifest_that_proves_itself_and_is_wrong_is_refused(store: Store, canary: Path) -> None:
    assert all_are_refused(store, manifests(), canary) >= 90


def test_a_model_that_does_not_repeat_its_examples_is_refused(store: Store, canary: Path) -> None:
    assert all_are_refused(store, goldens(), canary) >= 15


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # files that a trap left open
def test_the_traps_would_spring(canary: Path) -> None:
    sprung = 0
    for name, raw in traps(canary).items():
        file = canary.with_name("trap")
        file.write_bytes(raw)
        try:
            joblib.load(file)
        except Exception as error:
            print(f"{name}: {error!r}")
        if os.path.lexists(canary):
            sprung += 1
            shutil.rmtree(canary) if canary.is_dir() and not canary.is_symlink() else canary.unlink()
        else:
            print(f"{name}: did not spring")
    assert sprung == len(traps(canary)) >= 80


def test_a_pickle_in_a_published_bundle_is_never_loaded(store: Store, canary: Path) -> None:
    assert all_are_refused(store, unproven_pickles(canary), canary) >= 80


def test_a_replica_that_may_not_unpickle_never_does_whatever_the_digests_say(store: Store, canary: Path) -> None:
    assert all_are_refused(store, proven_pickles(canary), canary, load_policy(allow_joblib=False)) >= 80


def test_a_model_of_other_libraries_is_refused_before_it_is_unpickled(store: Store, canary: Path) -> None:
    assert all_are_refused(store, pickles_of_other_libraries(canary), canary) >= 10


def test_a_pickle_beside_a_good_onnx_model_is_never_loaded(store: Store, canary: Path) -> None:
    files = {**bundle_files(logistic(0.5), onnx=True), "model.joblib": traps(canary)["open"]}
    store.publish(files, bundle_manifest())
    slot = Slot(store, policy=ALLOW_ALL)
    assert slot.refresh()
    assert slot.predictor is not None
    assert (slot.predictor.version, slot.predictor.kind) == ("2", "onnx")
    assert not canary.exists()


def test_the_plain_files_of_old_are_not_unpickled_where_that_is_forbidden(tmp_path: Path, canary: Path) -> None:
    write_legacy(tmp_path / "models")
    for raw in traps(canary).values():
        (tmp_path / "models" / "model.joblib").write_bytes(raw)
        slot = Slot(Store(tmp_path / "models"), policy=load_policy(allow_joblib=False))
        assert not slot.refresh()
        assert slot.refusal is not None
        assert slot.refusal.reason == "forbidden"
        assert not canary.exists()


def test_an_onnx_model_that_reaches_out_of_itself_is_refused(store: Store, canary: Path, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    before = Path.cwd()
    os.chdir(tmp_path / "here")  # where ONNX Runtime would look for weights
    try:
        assert all_are_refused(store, graphs(tmp_path / "here"), canary) >= 120
    finally:
        os.chdir(before)


def test_only_bundles_with_the_trainers_seal_are_served(store: Store, canary: Path, tmp_path: Path) -> None:
    mine, public = key_pair(tmp_path, "trainer")
    strange, _ = key_pair(tmp_path, "stranger")
    policy = load_policy(verify=verifier(public))
    assert all_are_refused(store, badly_sealed(canary, signer(mine), signer(strange)), canary, policy) >= 70
    slot = Slot(store, policy=policy)
    assert not slot.refresh()
    assert slot.refusal is not None
    assert slot.refusal.reason == "unsigned"
    store.publish(bundle_files(logistic(0.5)), bundle_manifest(), sign=signer(mine))
    assert slot.refresh()
    write_legacy(tmp_path / "plain")
    plain = Slot(Store(tmp_path / "plain"), policy=policy)
    assert not plain.refresh()
    assert plain.refusal is not None
    assert plain.refusal.reason == "unsigned"


def test_keys_can_be_changed_while_both_are_trusted(store: Store, tmp_path: Path) -> None:
    (old, old_public), (new, new_public) = (key_pair(tmp_path, name) for name in ("old", "new"))
    both = tmp_path / "both.pem"
    both.write_bytes(old_public.read_bytes() + new_public.read_bytes())
    slot = Slot(store, policy=load_policy(verify=verifier(both)))
    for private in (old, new):
        entry = store.publish(bundle_files(logistic(0.5)), bundle_manifest(), sign=signer(private))
        assert slot.refresh()
        assert slot.predictor is not None
        assert slot.predictor.version == str(entry.version)


def test_the_code_of_a_right_package_would_run(store: Store, canary: Path) -> None:
    (right,) = forbidden_packages(canary)
    point(store, right.build(store.root))
    Slot(store, policy=ALLOW_ALL).refresh()
    assert canary.exists()


def test_no_package_of_code_that_is_wrong_or_not_allowed_is_run(store: Store, canary: Path) -> None:
    assert all_are_refused(store, wrong_packages(canary), canary) >= 15
    assert all_are_refused(store, forbidden_packages(canary), canary, load_policy(allow_joblib=False)) == 1


def test_more_than_a_thousand_were_tried() -> None:
    if len(kinds) < KINDS:
        pytest.skip(f"{len(kinds)} of {KINDS} kinds of bundles were tried by this process")
    note(f"hostile bundles: {tried.total()}, refused for {dict(sorted(tried.items()))}")
    assert tried.total() >= 1000
    assert tried["served"] == 0
