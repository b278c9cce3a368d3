"""Files of boosters with wrong positions, lengths and numbers are refused before the library reads them, or loaded without harm."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest

from serve_app.artifacts.manifest import NativeForm
from serve_app.artifacts.names import CATBOOST, LIGHTGBM, NATIVE, XGBOOST
from serve_app.artifacts.signature import Feature, Signature
from serve_app.errors import BundleRefused
from serve_app.inference.backends.booster_backend import BoosterBackend
from serve_app.inference.native_guard import UbjReader, check_native
from tests.support.figures import note
from training.boosters import native_file

pytest.importorskip("xgboost")
pytest.importorskip("lightgbm")
pytest.importorskip("catboost")
pytestmark = pytest.mark.filterwarnings("ignore")

FEATURES = 5
SIGNATURE = Signature(
    (Feature("a", "category", categories=tuple("uvwxyz")), *(Feature(name) for name in "bcde")), "classification", (0, 1)
)
MUTATIONS = 600


@cache
def model(file: str) -> bytes:
    import lightgbm
    import xgboost

    rows = np.random.default_rng(0).normal(size=(300, FEATURES))
    rows[:, 0] = np.random.default_rng(1).integers(0, 6, 300)
    target = (rows[:, 1] + np.isin(rows[:, 0], [1, 3]) > 0.5).astype(int)
    if file == XGBOOST:
        kinds = ["c", *["q"] * 4]
        fitted: Any = xgboost.XGBClassifier(n_estimators=10, n_jobs=1, enable_categorical=True, feature_types=kinds)
        fitted.fit(rows, target)
    else:
        fitted = lightgbm.LGBMClassifier(n_estimators=10, n_jobs=1, verbosity=-1).fit(rows, target, categorical_feature=[0])
    name, data = native_file(fitted)
    assert name == file
    return data


def ask(file: str, data: bytes) -> None:
    form = NativeForm(file=file, library=NATIVE[file], version="1")
    BoosterBackend(data, form, SIGNATURE).scores(np.random.default_rng(2).normal(size=(5, FEATURES)))


@pytest.mark.parametrize("file", [XGBOOST, LIGHTGBM])
def test_a_model_as_its_library_writes_it_passes(file: str) -> None:
    check_native(file, model(file))
    ask(file, model(file))


@pytest.mark.parametrize("data", [b"", b"CBM1", b"CBM1\xff\xff\xff\xff", b"CBM2\0\0\0\0"], ids=repr)
def test_a_file_of_catboost_is_as_long_as_it_says(data: bytes) -> None:
    with pytest.raises(BundleRefused):
        check_native(CATBOOST, data)


def damaged(data: bytes, at: int, choose: random.Random) -> bytes:
    """The bytes cut off, with single bytes changed, or with a number of four bytes replaced by an extreme one."""
    mutant = bytearray(data)
    if at % 3 == 0:
        return data[: choose.randrange(len(data))]
    if at % 3 == 1:
        for _ in range(choose.choice((1, 4, 20))):
            mutant[choose.randrange(len(data))] = choose.randrange(256)
        return bytes(mutant)
    start = choose.randrange(len(data) - 4)
    mutant[start : start + 4] = choose.choice((b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"\0\0\0\x80"))
    return bytes(mutant)


@pytest.mark.parametrize("file", [XGBOOST, LIGHTGBM])
def test_damaged_files_are_refused_or_harmless(file: str) -> None:
    """A file that passes is loaded and asked in this process: a position outside of the library's memory would end it."""
    choose = random.Random(1)
    refused = errors = 0
    for at in range(MUTATIONS):
        data = damaged(model(file), at, choose)
        try:
            check_native(file, data)
        except BundleRefused:
            refused += 1
            continue
        try:
            ask(file, data)
        except Exception:
            errors += 1
    note(f"{MUTATIONS} damaged files {file}: {refused} refused before they are read, {errors} by the library")
    assert refused > MUTATIONS * 0.8


def ubj(name: bytes, kind: bytes, change: Callable[[np.ndarray[Any, Any]], None]) -> bytes:
    """The model of XGBoost with a changed array of the first tree that has one."""
    data = bytearray(model(XGBOOST))
    if kind == b"i":  # single small numbers
        found = re.search(re.escape(name) + rb"\[#L(.{8})", bytes(data), re.DOTALL)
        assert found is not None
        small = np.frombuffer(bytes(data[found.end() : found.end() + 2 * int.from_bytes(found[1], "big")]), "u1").copy()
        change(small[1::2])
        data[found.end() : found.end() + len(small)] = small.tobytes()
        return bytes(data)
    width = {b"l": 4, b"L": 8, b"U": 1}[kind]
    dtype = {b"l": ">i4", b"L": ">i8", b"U": "u1"}[kind]
    for found in re.finditer(re.escape(name) + rb"\[\$" + kind + b"#L(.{8})", bytes(data), re.DOTALL):
        count = int.from_bytes(found[1], "big")
        if count:
            values = np.frombuffer(bytes(data[found.end() : found.end() + count * width]), dtype).copy()
            change(values)
            data[found.end() : found.end() + count * width] = values.tobytes()
            return bytes(data)
    raise AssertionError(name)


def put(position: int, value: int) -> Callable[[np.ndarray[Any, Any]], None]:
    def change(values: np.ndarray[Any, Any]) -> None:
        values[position] = value

    return change


XGBOOST_CASES = {
    "a child that does not exist": (b"left_children", b"l", put(0, 10_000)),
    "a child before the root": (b"left_children", b"l", put(0, -7)),
    "a way without an end": (b"left_children", b"l", put(0, 0)),
    "a leaf with one child": (b"right_children", b"l", put(0, -1)),
    "two parents": (b"left_children", b"l", put(0, 2)),
    "a feature that does not exist": (b"split_indices", b"l", put(0, 99)),
    "a negative feature": (b"split_indices", b"l", put(0, -1)),
    "a wrong parent": (b"parents", b"l", put(1, 5_000)),
    "a list of categories outside": (b"categories_segments", b"L", put(0, 10**9)),
    "a long list of categories": (b"categories_sizes", b"L", put(0, 10**9)),
    "an empty list of categories": (b"categories_sizes", b"L", put(0, 0)),
    "a huge category": (b"categories", b"l", put(0, 2**24 - 1)),
    "a negative category": (b"categories", b"l", put(0, -1)),
    "categories of another node": (b"categories_nodes", b"l", put(0, 10_000)),
    "a class that does not exist": (b"tree_info", b"i", put(0, 3)),
    "rounds that go back": (b"iteration_indptr", b"i", put(1, 99)),
}


@pytest.mark.parametrize("case", XGBOOST_CASES)
def test_wrong_positions_in_a_file_of_xgboost_are_refused(case: str) -> None:
    with pytest.raises(BundleRefused) as refusal:
        check_native(XGBOOST, ubj(*XGBOOST_CASES[case]))
    assert refusal.value.reason == "load"


LIGHTGBM_CASES = {
    "a child that does not exist": (r"left_child=\S+", "left_child=999"),
    "a leaf that does not exist": (r"left_child=\S+", "left_child=-999"),
    "a way without an end": (r"left_child=\S+", "left_child=0"),
    "a feature that does not exist": (r"split_feature=\S+", "split_feature=99"),
    "a negative feature": (r"split_feature=\S+", "split_feature=-1"),
    "more leaves than values": (r"num_leaves=\d+", "num_leaves=999"),
    "a list of categories that does not exist": (r"num_cat=\d+", "num_cat=99"),
    "a text for a number": (r"leaf_value=\S+", "leaf_value=0x10"),
    "a kind of split": (r"decision_type=\S+", "decision_type=77"),
    "a huge category": (r"cat_threshold=\S+", "cat_threshold=" + "1 " * 1000),
    "a line that is not known": (r"shrinkage=", "wrong="),
    "a size beyond the end": (r"tree_sizes=\d+", "tree_sizes=99999999"),
    "a negative size": (r"tree_sizes=\d+", "tree_sizes=-5"),
    "many classes": (r"num_class=1", "num_class=100000"),
    "no features": (r"max_feature_idx=\d+", "max_feature_idx=-1"),
    "parameters behind the trees": (r"end of trees\n", "end of trees\n\nparameters:\n[machines: 10.0.0.1]\n"),
}


@pytest.mark.parametrize("case", LIGHTGBM_CASES)
def test_wrong_lines_in_a_file_of_lightgbm_are_refused(case: str) -> None:
    pattern, text = LIGHTGBM_CASES[case]
    raw = model(LIGHTGBM).decode()
    changed = re.sub(pattern, text, raw, count=1)
    if "tree_sizes" not in pattern and "\nTree=0\n" in raw[: raw.index("num_leaves")]:
        longer = len(changed) - len(raw)
        inside = re.search(pattern, raw)
        if inside is not None and raw.index("Tree=0") < inside.start() < raw.index("Tree=1"):
            changed = re.sub(r"tree_sizes=(\d+)", lambda size: f"tree_sizes={int(size[1]) + longer}", changed, count=1)
    assert changed != raw
    with pytest.raises(BundleRefused) as refusal:
        check_native(LIGHTGBM, changed.encode())
    assert refusal.value.reason == "load"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"{}",
        b"[",
        b"{" * 100_000,
        b"[#L" + (2**62).to_bytes(8, "big"),
        b"{L" + (1).to_bytes(8, "big") + b"a[$d#L" + (2**62).to_bytes(8, "big"),
        b"{L" + (-1).to_bytes(8, "big", signed=True),
        b"[#L\0\0\0\0\0\0\0\1" * 50_000,
        b"{L" + (1).to_bytes(8, "big") + b"aTL" + (1).to_bytes(8, "big") + b"aT}",
    ],
    ids=lambda data: repr(data[:12]),
)
def test_wrong_binary_json_is_refused(data: bytes) -> None:
    with pytest.raises(BundleRefused):
        check_native(XGBOOST, data)


def test_binary_json_is_read_as_the_library_writes_it() -> None:
    document = UbjReader(model(XGBOOST)).document()
    assert document["version"][0] >= 3
    assert document["learner"]["objective"]["name"] == "binary:logistic"
    assert len(document["learner"]["gradient_booster"]["model"]["trees"]) == 10
