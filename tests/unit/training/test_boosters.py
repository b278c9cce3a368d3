from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest

from serve_app.artifacts.manifest import NativeForm
from serve_app.artifacts.names import CATBOOST, LIGHTGBM, XGBOOST
from serve_app.artifacts.signature import Feature, Signature
from serve_app.artifacts.store import Store
from serve_app.cli import main
from serve_app.errors import UsageError
from serve_app.inference.backends.booster_backend import BoosterBackend
from serve_app.inference.backends.onnx_backend import OnnxBackend
from serve_app.inference.backends.sklearn_backend import SklearnBackend
from serve_app.inference.booster_estimators import LEAST_ROWS, BoosterClassifier
from tests.support import tables
from tests.support.apps import HEADERS, client_of
from tests.support.estimators import BOOSTERS
from training import boosters, convert, fit
from training.booster_trees import read_ensemble
from training.candidate import fit_candidate
from training.dataset import load
from training.train_options import TrainOptions

pytest.importorskip("xgboost")
pytest.importorskip("lightgbm")
pytest.importorskip("catboost")
pytestmark = pytest.mark.filterwarnings("ignore")

ROWS = 1500
RANDOM = np.random.default_rng(0)
MATRIX = RANDOM.normal(size=(ROWS, 4))
MATRIX[:, 3] = RANDOM.integers(0, 5, ROWS)
MATRIX[RANDOM.random(MATRIX.shape) < 0.1] = np.nan
SUMS = np.nan_to_num(MATRIX[:, 0]) + np.isin(MATRIX[:, 3], [1, 3]) + np.nan_to_num(MATRIX[:, 1] * MATRIX[:, 2])
TWO = (np.median(SUMS) < SUMS).astype(int)
THREE = np.digitize(SUMS, np.quantile(SUMS, [0.33, 0.66]))
POSITIVE = np.exp(SUMS / 2)

NUMBERS = tuple(Feature(name, nullable=True) for name in "abcd")
CODED = (*NUMBERS[:3], Feature("d", "category", categories=tuple("vwxyz"), nullable=True))
TARGETS = {"two": (TWO, (0, 1)), "three": (THREE, (0, 1, 2)), "sums": (SUMS, ()), "positive": (POSITIVE, ())}


def signature_of(target: str, features: tuple[Feature, ...] = NUMBERS) -> Signature:
    classes = TARGETS[target][1]
    return Signature(features, "classification" if classes else "regression", classes)


def model(kind: str, **parameters: Any) -> Any:
    import catboost
    import lightgbm
    import xgboost

    module, quiet = {
        "XGB": (xgboost, {"n_jobs": 1, "n_estimators": 25}),
        "LGB": (lightgbm, {"n_jobs": 1, "n_estimators": 25, "verbosity": -1}),
        "Cat": (catboost, {"thread_count": 1, "n_estimators": 25, "verbose": 0, "allow_writing_files": False}),
    }[kind[:3]]
    return getattr(module, kind)(**{**quiet, **parameters})


# --- training


@pytest.mark.parametrize("estimator", BOOSTERS)
@pytest.mark.parametrize("labels", [("no", "yes"), (False, True), (-1.5, 2.0), (7, 3)], ids=str)
def test_labels_of_any_kind_come_back(estimator: str, labels: tuple[Any, Any]) -> None:
    signature = Signature(CODED, "classification", tuple(sorted(labels)))
    target = np.array(labels)[TWO]
    fitted = fit.build(signature, estimator, {"n_estimators": 40}, random_state=1)[-1].fit(MATRIX, target)
    assert fitted.classes_.tolist() == sorted(labels)
    assert fitted.predict(MATRIX).dtype == target.dtype
    assert np.mean(fitted.predict(MATRIX) == target) > 0.85
    backend = SklearnBackend(fitted, signature)
    assert np.array_equal(backend.scores(MATRIX).argmax(axis=1), np.searchsorted(sorted(labels), fitted.predict(MATRIX)))


@pytest.mark.parametrize("estimator", BOOSTERS)
def test_growing_stops_where_further_trees_are_no_better(estimator: str) -> None:
    noise = np.random.default_rng(1).integers(0, 2, ROWS)
    signature = signature_of("two", CODED)
    fitted = fit.build(signature, estimator, {"n_estimators": 200}, random_state=1)[-1].fit(MATRIX, noise)
    assert 0 < fitted.tree_count_ < 60
    converted = convert.convert(fitted, signature, MATRIX, MATRIX[:200])
    expected = fitted.predict_proba(MATRIX)
    if converted.model is not None:
        assert np.abs(OnnxBackend(converted.model, signature, rounded=False).scores(MATRIX) - expected).max() < 1e-6
    file, data = boosters.native_file(fitted)
    form = NativeForm(file=file, library=estimator, version="1")
    assert np.array_equal(BoosterBackend(data, form, signature).scores(MATRIX), expected)


def test_few_rows_are_all_learnt_from() -> None:
    assert LEAST_ROWS > 100
    fitted = fit.build(signature_of("two", CODED), "xgboost", {"n_estimators": 30}, random_state=1)[-1].fit(MATRIX[:100], TWO[:100])
    assert fitted.tree_count_ == 30


@pytest.mark.parametrize("estimator", BOOSTERS)
@pytest.mark.parametrize("depth", [3, None])
def test_depth_and_number_of_trees_have_one_name(estimator: str, depth: int | None) -> None:
    built = fit.build(signature_of("sums"), estimator, {"n_estimators": 7, "max_depth": depth}, random_state=1)
    fit.fit(built, pd.DataFrame(MATRIX[:200], columns=list("abcd")), SUMS[:200])
    assert fit.final_estimator(built).tree_count_ == 7
    assert fit.parameters(built)["n_estimators"] == 7


def test_a_missing_library_is_named_before_the_table_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr("training.estimators.find_spec", lambda name: None if name == "xgboost" else find(name))
    with pytest.raises(UsageError, match=r"iris-api\[xgboost\]"):
        TrainOptions(data="/nowhere.csv", target="y", estimator="xgboost", model_dir=tmp_path)


def test_what_the_library_refuses_is_one_sentence() -> None:
    built = fit.build(signature_of("sums"), "catboost", {"max_depth": 99}, random_state=1)
    with pytest.raises(UsageError, match="CatBoostRegressor cannot learn this table"):
        fit.fit(built, pd.DataFrame(MATRIX, columns=list("abcd")), SUMS)


def test_a_table_with_categories_gaps_and_dates_is_learnt(tmp_path: Path) -> None:
    dataset = load(tables.written(tables.visits(), tmp_path), target="stays")
    for estimator in BOOSTERS:
        candidate = fit_candidate(dataset, estimator, {"n_estimators": 30}, random_state=1)
        converted = convert.convert(candidate.estimator, candidate.signature, candidate.train, candidate.held_out)
        assert converted.model is not None or converted.native is not None, converted.facts.reason
        assert candidate.metrics.scalars()["accuracy"] > 0.8


# --- conversion

ONNX_EXACT = [
    *[("LGBMClassifier", "two", {}), ("LGBMClassifier", "three", {}), ("LGBMClassifier", "three", {"objective": "multiclassova"})],
    *[("LGBMClassifier", "two", {"boosting_type": "dart"}), ("LGBMClassifier", "two", {"sigmoid": 2.0})],
    ("LGBMClassifier", "two", {"boosting_type": "rf", "subsample": 0.5, "subsample_freq": 1}),
    *[("LGBMRegressor", "sums", {}), ("LGBMRegressor", "sums", {"objective": "quantile", "alpha": 0.9})],
    *[("LGBMRegressor", "positive", {"objective": "poisson"}), ("LGBMClassifier", "two", {"use_missing": False})],
    *[("CatBoostClassifier", "two", {}), ("CatBoostClassifier", "three", {})],
    *[("CatBoostClassifier", "three", {"loss_function": "MultiClassOneVsAll"})],
    *[("CatBoostClassifier", "three", {"grow_policy": "Lossguide"}), ("CatBoostRegressor", "sums", {"grow_policy": "Depthwise"})],
    *[("CatBoostRegressor", "positive", {"loss_function": "Poisson"}), ("CatBoostRegressor", "sums", {"nan_mode": "Max"})],
]
ONNX_CLOSE = [
    *[
        ("XGBClassifier", "two", {}),
        ("XGBClassifier", "three", {}),
        ("XGBClassifier", "two", {"booster": "dart", "rate_drop": 0.3}),
    ],
    *[
        ("XGBRegressor", "sums", {}),
        ("XGBRegressor", "sums", {"booster": "dart", "rate_drop": 0.3}),
        ("XGBRFClassifier", "three", {}),
    ],
    *[("XGBRegressor", "positive", {"objective": objective}) for objective in ("count:poisson", "reg:gamma", "reg:tweedie")],
    ("XGBRegressor", "sums", {"objective": "reg:quantileerror", "quantile_alpha": 0.9}),
    ("XGBRegressor", "sums", {"max_depth": 0, "grow_policy": "lossguide", "max_leaves": 100}),
]
NATIVE = [
    *[("XGBRegressor", "sums", {"booster": "gblinear"}), ("XGBClassifier", "two", {"objective": "binary:hinge"})],
    *[("LGBMClassifier", "two", {"zero_as_missing": True}), ("LGBMRegressor", "sums", {"linear_tree": True})],
    *[
        ("LGBMRegressor", "sums", {"reg_sqrt": True}),
        ("CatBoostRegressor", "positive", {"loss_function": "LogLinQuantile:alpha=0.5"}),
    ],
]
NEITHER = [
    ("XGBRegressor", "sums", {"objective": "reg:quantileerror", "quantile_alpha": [0.1, 0.9]}),
    ("LGBMClassifier", "two", {"objective": lambda y, raw: (1 / (1 + np.exp(-raw)) - y, np.ones_like(raw))}),
]


def converted(kind: str, target: str, parameters: dict[str, Any]) -> convert.Converted:
    fitted = model(kind, **parameters).fit(MATRIX, TARGETS[target][0])
    return convert.convert(fitted, signature_of(target), MATRIX, MATRIX[:500])


@pytest.mark.parametrize(("kind", "target", "parameters"), ONNX_EXACT)
def test_trees_of_float64_convert_to_the_last_bit_or_nearly(kind: str, target: str, parameters: dict[str, Any]) -> None:
    done = converted(kind, target, parameters)
    assert done.model is not None, done.facts.reason
    assert done.facts.largest_difference is not None
    assert done.facts.largest_difference < 1e-12
    assert done.facts.rows_compared is not None
    assert done.facts.rows_compared > 1000


@pytest.mark.parametrize(("kind", "target", "parameters"), ONNX_CLOSE)
def test_trees_of_float32_convert_to_their_last_digits(kind: str, target: str, parameters: dict[str, Any]) -> None:
    done = converted(kind, target, parameters)
    assert done.model is not None, done.facts.reason
    assert done.facts.largest_difference is not None
    assert done.facts.largest_difference < 1e-5 * max(1.0, float(np.abs(TARGETS[target][0]).max()))


@pytest.mark.parametrize(("kind", "target", "parameters"), NATIVE)
def test_what_is_no_sum_of_leaves_is_served_by_its_library(kind: str, target: str, parameters: dict[str, Any]) -> None:
    done = converted(kind, target, parameters)
    assert done.model is None
    assert done.native is not None, done.facts.reason
    assert done.native.form.largest_difference == 0.0


@pytest.mark.parametrize(("kind", "target", "parameters"), NEITHER)
def test_what_no_form_answers_alike_is_left_to_the_pickle(kind: str, target: str, parameters: dict[str, Any]) -> None:
    done = converted(kind, target, parameters)
    assert (done.model, done.native) == (None, None)


def test_numbers_that_the_library_cuts_to_codes_are_no_codes_for_onnx() -> None:
    """LightGBM takes 2.5 for the category 2. Only the signature knows that no client can send it."""
    fitted = model("LGBMClassifier").fit(MATRIX, TWO, categorical_feature=[3])
    assert convert.convert(fitted, signature_of("two"), MATRIX, MATRIX[:500]).native is not None
    assert convert.convert(fitted, signature_of("two", CODED), MATRIX, MATRIX[:500]).model is not None


@pytest.mark.parametrize("kind", ["LGBMClassifier", "CatBoostClassifier", "XGBClassifier"])
def test_the_proof_finds_thresholds_that_are_a_digit_off(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fitted = model(kind).fit(MATRIX, TWO)
    right = read_ensemble(fitted)
    moved = [replace(tree, threshold=np.nextafter(tree.threshold.astype(np.float32), np.float32(9))) for tree in right.trees]
    monkeypatch.setattr("training.onnx_float64.read_ensemble", lambda estimator: replace(right, trees=moved))
    done = convert.convert(fitted, signature_of("two"), MATRIX, MATRIX)
    assert done.model is None
    assert "differs" in str(done.facts.reason)


@pytest.mark.parametrize("kind", ["LGBMClassifier", "CatBoostClassifier", "XGBClassifier"])
def test_probes_sit_on_the_thresholds_of_the_trees_and_beside_them(kind: str) -> None:
    fitted = model(kind, n_estimators=5).fit(MATRIX, TWO)
    rows = convert.threshold_rows(fitted, signature_of("two"), MATRIX)
    assert 0 < len(rows) <= convert.MAX_PROBES
    for column, thresholds in read_ensemble(fitted).thresholds().items():
        for threshold in thresholds.tolist():
            narrow = np.float32(threshold)
            for value in (
                threshold,
                np.nextafter(threshold, -9.0),
                np.nextafter(threshold, 9.0),
                np.nextafter(narrow, np.float32(9)),
            ):
                assert (rows[:, column] == value).any(), (column, threshold, value)
    signature = Signature((*NUMBERS, Feature("e")), "classification", (0, 1))
    assert convert.threshold_rows(fitted, signature, np.zeros((3, 5))).shape == (0, 5)


@pytest.mark.parametrize("kind", ["XGBClassifier", "LGBMClassifier", "CatBoostClassifier"])
def test_boosters_inside_other_estimators_convert(kind: str) -> None:
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline

    pipeline = make_pipeline(SimpleImputer(), model(kind)).fit(MATRIX, TWO)
    done = convert.convert(pipeline, signature_of("two"), MATRIX, MATRIX[:500])
    assert done.model is not None, done.facts.reason
    calibrated = CalibratedClassifierCV(model(kind), cv=2).fit(np.nan_to_num(MATRIX), TWO)
    features = tuple(Feature(name) for name in "abcd")
    done = convert.convert(calibrated, signature_of("two", features), np.nan_to_num(MATRIX), np.nan_to_num(MATRIX[:500]))
    assert done.model is not None, done.facts.reason


# --- files of the libraries


def test_a_file_of_xgboost_tells_features_kinds_and_classes(tmp_path: Path) -> None:
    frame = pd.DataFrame(MATRIX, columns=list("abcd"))
    frame["d"] = pd.Categorical(frame["d"].map(dict(enumerate("zyxwv"))), categories=list("zyxwv"))
    fitted = model("XGBClassifier", enable_categorical=True).fit(frame, THREE)
    for name in ("m.ubj", "m.json"):
        fitted.save_model(tmp_path / name)
        found = boosters.load_native(tmp_path / name)
        assert (found.library, found.names, found.task, found.classes) == ("xgboost", tuple("abcd"), "classification", (0, 1, 2))
        assert found.kinds == ("number", "number", "number", "category")
        assert found.categories == {3: tuple("zyxwv")}
        signature = signature_of("three", (*NUMBERS[:3], Feature("d", "category", categories=tuple("zyxwv"), nullable=True)))
        wrapped = boosters.on_codes(found.estimator, signature)
        assert np.array_equal(SklearnBackend(wrapped, signature).scores(MATRIX), fitted.predict_proba(frame))
        assert convert.convert(wrapped, signature, MATRIX, MATRIX[:300]).model is not None


def test_a_file_of_lightgbm_has_lost_its_labels(tmp_path: Path) -> None:
    frame = pd.DataFrame(MATRIX, columns=list("abcd"))
    frame["d"] = pd.Categorical(frame["d"].map(dict(enumerate("zyxwv"))), categories=list("zyxwv"))
    fitted = model("LGBMClassifier").fit(frame, np.array(["no", "yes"])[TWO])
    fitted.booster_.save_model(tmp_path / "m.txt")
    found = boosters.load_native(tmp_path / "m.txt")
    assert (found.names, found.classes, found.n_classes, found.categories) == (tuple("abcd"), None, 2, {3: tuple("zyxwv")})
    signature = Signature(
        (*NUMBERS[:3], Feature("d", "category", categories=tuple("zyxwv"), nullable=True)), "classification", ("no", "yes")
    )
    wrapped = boosters.on_codes(found.estimator, signature)
    assert wrapped.predict(MATRIX).tolist() == fitted.predict(frame).tolist()
    assert np.array_equal(wrapped.predict_proba(MATRIX), fitted.predict_proba(frame))
    assert convert.convert(wrapped, signature, MATRIX, MATRIX[:300]).model is not None


def test_a_file_of_catboost_is_asked_with_the_texts_that_it_learnt_from(tmp_path: Path) -> None:
    texts = dict(enumerate("vwxyz"))
    rows = [[*row[:3], texts.get(row[3], "nothing")] for row in MATRIX.tolist()]
    fitted = model("CatBoostClassifier", cat_features=[3]).fit(rows, np.array(["no", "yes"])[TWO])
    fitted.save_model(str(tmp_path / "m.cbm"))
    found = boosters.load_native(tmp_path / "m.cbm")
    assert (found.names, found.classes, found.kinds[3], found.version) == (None, ("no", "yes"), "category", "1.2.10")
    signature = Signature(CODED, "classification", ("yes", "no"))
    wrapped = boosters.on_codes(found.estimator, signature, gap="nothing")
    assert isinstance(wrapped, BoosterClassifier)
    assert np.array_equal(wrapped.predict_proba(MATRIX), fitted.predict_proba(rows))
    done = convert.convert(wrapped, signature, MATRIX, MATRIX[:300])
    assert done.native is not None, done.facts.reason
    assert (done.native.form.texts, done.native.form.gap, done.native.form.order) == (True, "nothing", (1, 0))
    backend = BoosterBackend(done.native.data, done.native.form, signature)
    assert np.array_equal(backend.scores(MATRIX), fitted.predict_proba(rows)[:, ::-1])


def decided(folder: Path, threshold: float, **parameters: Any) -> tuple[Any, pd.DataFrame]:
    """CatBoost of two classes with a threshold, saved as m.cbm and m.joblib; and rows, none of them between it and one half."""
    rows = pd.DataFrame(MATRIX[:, :3], columns=list("abc")).assign(label=np.array(["no", "yes"])[TWO])
    fitted = model("CatBoostClassifier", **parameters).fit(rows[["a", "b", "c"]], rows.label)
    fitted.set_probability_threshold(threshold)
    fitted.save_model(str(folder / "m.cbm"))
    joblib.dump(fitted, folder / "m.joblib")
    share = fitted.predict_proba(rows[["a", "b", "c"]])[:, 1]
    return fitted, rows[(share < min(threshold, 0.5)) | (share > max(threshold, 0.5))]


def adopted(folder: Path, file: str, rows: pd.DataFrame) -> int:
    rows.to_csv(folder / "rows.csv", index=False)
    options = ["--sample", str(folder / "rows.csv"), "--target", "label", "--model-dir", str(folder / "models"), "--no-tracking"]
    return main(["adopt", str(folder / file), *options])


@pytest.mark.parametrize("file", ["m.cbm", "m.joblib"])
@pytest.mark.parametrize("threshold", [0.2, 0.7])
def test_a_threshold_in_a_model_of_catboost_is_served_also_when_no_row_of_the_sample_shows_it(
    tmp_path: Path, file: str, threshold: float
) -> None:
    fitted, rows = decided(tmp_path, threshold)
    assert adopted(tmp_path, file, rows) == 0
    bundle = Store(tmp_path / "models").current(None)
    assert bundle is not None
    assert bundle.signature is not None
    assert bundle.signature.threshold == pytest.approx(threshold)
    assert bundle.signature.positive == "yes"
    asked = pd.DataFrame(MATRIX[:, :3], columns=list("abc"))
    expected, share = fitted.predict(asked), fitted.predict_proba(asked)[:, 1]
    between = np.flatnonzero((share > min(threshold, 0.5)) & (share < max(threshold, 0.5)))[:20]
    assert len(between) > 5
    with client_of(Store(tmp_path / "models")) as client:
        for at in between:
            row = {name: None if np.isnan(value) else value for name, value in asked.iloc[at].items()}
            assert client.post("/predict", json=row, headers=HEADERS).json()["prediction"] == expected[at]


def test_a_threshold_that_catboost_does_not_apply_to_its_classes_is_none_of_the_signature(tmp_path: Path) -> None:
    fitted, rows = decided(tmp_path, 0.2, loss_function="MultiClass")
    asked = rows[["a", "b", "c"]]
    assert fitted.predict(asked).ravel().tolist() == fitted.classes_[fitted.predict_proba(asked).argmax(axis=1)].tolist()
    assert adopted(tmp_path, "m.cbm", rows) == 0
    bundle = Store(tmp_path / "models").current(None)
    assert bundle is not None
    assert bundle.signature is not None
    assert bundle.signature.threshold is None


@pytest.mark.parametrize("file", ["m.cbm", "m.joblib"])
def test_a_threshold_of_catboost_that_always_gives_one_class_is_refused(
    tmp_path: Path, file: str, capfd: pytest.CaptureFixture[str]
) -> None:
    _, rows = decided(tmp_path, 0.0)
    assert adopted(tmp_path, file, rows) == 2
    assert "set_probability_threshold" in capfd.readouterr().err.splitlines()[-1]
    assert Store(tmp_path / "models").entries() == []


@pytest.mark.parametrize("name", ["m.ubj", "m.json", "m.txt", "m.cbm", "m.pkl", "nowhere.ubj"])
def test_a_file_that_is_no_model_is_one_sentence(tmp_path: Path, name: str) -> None:
    if name.startswith("m."):
        (tmp_path / name).write_text(json.dumps({"learner": 1}))
    with pytest.raises(UsageError) as refusal:
        boosters.load_native(tmp_path / name)
    assert name in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("kind", "file"), [("XGBRegressor", XGBOOST), ("LGBMRegressor", LIGHTGBM), ("CatBoostRegressor", CATBOOST)]
)
def test_each_library_has_its_file(kind: str, file: str) -> None:
    fitted = model(kind).fit(MATRIX, SUMS)
    assert boosters.is_booster(fitted)
    assert boosters.native_file(fitted)[0] == file
    assert not boosters.is_booster(fit.build(signature_of("sums"), "hist-gradient-boosting", {}, random_state=0))
