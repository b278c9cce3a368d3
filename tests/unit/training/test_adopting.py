"""Models are adopted from memory with `publish` and from files with `iris-api adopt`; what cannot be adopted is one sentence."""

from __future__ import annotations

import importlib
import io
import json
import os
import pickle
import sys
from contextlib import nullcontext
from operator import attrgetter, methodcaller
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
import scipy.sparse  # type: ignore[import-untyped]
import sklearn
import skops.io
from sklearn.compose import ColumnTransformer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler

from serve_app.artifacts.names import GOLDEN, JOBLIB, SEAL
from serve_app.artifacts.signing import verifier
from serve_app.artifacts.store import Store
from serve_app.cli import main
from serve_app.errors import UsageError
from serve_app.secret_variables import environment_for_model
from tests.support.apps import HEADERS, client_of
from tests.support.fitted_models import FITTED, MIXED, classifier, of_array, of_dates, regressor, sample_of_regressor, table
from tests.support.hostile.signatures import key_pair
from training import publish

pytestmark = pytest.mark.unit


def sample() -> pd.DataFrame:
    return table()[[*MIXED, "unused", "label"]]


def quiet(model: Any, rows: Any, target: Any = None, **options: Any) -> Any:
    options = {"no_tracking": True, "importance_seconds": 0.0, "progress": lambda text: nullcontext(), **options}
    return publish(model, rows, target, **options)


def sections(published: Any) -> dict[str, dict[str, str]]:
    return {title.partition(" ")[0]: dict(entries) for title, entries in published.report.sections}


def test_a_model_in_memory_is_published_with_its_own_golden_rows_and_reported(tmp_path: Path) -> None:
    model = classifier("one-hot and logistic regression")
    published = quiet(model, sample()[FITTED:], "label", held_out=True, model_dir=tmp_path)
    assert published.version == 1
    report = sections(published)
    assert report["model"]["is"].startswith("sklearn.pipeline.Pipeline")
    assert report["columns"]["city"].startswith("category (an encoder of the model), takes null")
    assert report["columns"]["not read"].startswith("member, unused")
    assert report["serving"]["executes"].startswith("no code of the model")
    assert "<table>" in published._repr_html_()
    bundle = Store(tmp_path).current(None)
    assert bundle is not None
    assert bundle.manifest.adopted is not None
    assert bundle.manifest.adopted.held_out
    golden = json.loads(bundle.files[GOLDEN])
    assert any(row["city"] is None for row in golden["rows"])
    known = {"Bern", "Oslo", "São Paulo", None}
    assert any(row["city"] not in known for row in golden["rows"])
    dtypes = sample().dtypes
    for row, scores in zip(golden["rows"], golden["scores"], strict=True):
        frame = pd.DataFrame({name: pd.Series([value], dtype=dtypes[name]) for name, value in row.items()})
        assert model.predict_proba(frame)[0] == pytest.approx(scores, abs=1e-15)


def test_without_labels_the_gate_makes_technical_checks_and_the_card_says_so(tmp_path: Path) -> None:
    published = quiet(classifier("fixed threshold"), sample().drop(columns="label"), model_dir=tmp_path)
    assert published.version == 1
    assert sections(published)["answers"]["metrics"].startswith("none")
    assert sections(published)["answers"]["label"] == "yes if its probability is at least 0.2"
    folder = next((tmp_path / "bundles").iterdir())
    assert "technical" in (folder / "card.html").read_text()


def test_a_model_that_is_worse_than_the_served_one_is_refused_and_nothing_is_published(tmp_path: Path) -> None:
    good = classifier("one-hot and logistic regression")
    quiet(good, sample(), "label", model_dir=tmp_path)
    frame = table()[:FITTED]
    bad = make_pipeline(good[0], LogisticRegression(C=1e-9)).fit(frame[[*MIXED, "unused"]], frame.label)
    refused = quiet(bad, sample(), "label", model_dir=tmp_path)
    assert refused.version is None
    assert refused.reasons
    assert len(Store(tmp_path).entries()) == 1


def test_a_dry_run_reports_and_publishes_nothing(tmp_path: Path) -> None:
    published = quiet(regressor(), sample_of_regressor(), "value", dry_run=True, model_dir=tmp_path)
    assert published.version is None
    assert published.outcome is None
    assert not Store(tmp_path).entries()


def test_labels_may_be_given_beside_an_array(tmp_path: Path) -> None:
    numbers = table()[["size", "age"]].fillna(30.0).to_numpy()
    published = quiet(of_array(), numbers, table().label, model_dir=tmp_path)
    assert published.version == 1
    assert client_of(Store(tmp_path)).post("/predict", json={"x0": 12.0, "x1": 30.0}, headers=HEADERS).status_code == 200


def test_texts_with_gaps_are_served_without_a_table(tmp_path: Path) -> None:
    frame = table()[["note", "size", "label"]].astype({"note": object})
    frame.loc[::7, "note"] = np.nan
    words = make_pipeline(
        SimpleImputer(strategy="constant", fill_value="nothing"), FunctionTransformer(np.ravel), TfidfVectorizer()
    )
    prepare = ColumnTransformer([("words", words, ["note"]), ("size", StandardScaler(), ["size"])])
    rows = frame[["note", "size"]]
    model = make_pipeline(prepare, LogisticRegression()).fit(rows, frame.label)
    published = quiet(model, frame, "label", model_dir=tmp_path)
    bundle = Store(tmp_path).current(None)
    assert bundle is not None
    assert bundle.manifest.frame is None
    assert sections(published)["columns"]["note"].startswith("text")
    client = client_of(Store(tmp_path))
    for at in (0, 1):
        note = None if at == 0 else str(rows.note[at])
        response = client.post("/predict", json={"note": note, "size": float(rows["size"][at])}, headers=HEADERS).json()
        expected = dict(zip(model.classes_, model.predict_proba(rows.iloc[[at]])[0], strict=True))
        assert response["probabilities"] == {str(label): pytest.approx(value, abs=1e-12) for label, value in expected.items()}


def test_code_of_a_notebook_travels_in_the_bundle(tmp_path: Path) -> None:
    frame = table()[["size", "age"]].fillna(30.0)
    model = make_pipeline(FunctionTransformer(lambda rows: np.square(rows)), LogisticRegression()).fit(frame, table().label)
    published = quiet(model, frame.assign(label=table().label), "label", model_dir=tmp_path)
    assert published.version == 1
    assert "code of its own" in sections(published)["serving"]["executes"]
    bundle = Store(tmp_path).current(None)
    assert bundle is not None
    assert b"cloudpickle" in bundle.files[JOBLIB]
    answer = client_of(Store(tmp_path)).post("/predict", json={"size": 12.0, "age": 3.0}, headers=HEADERS).json()
    expected = model.predict_proba(pd.DataFrame({"size": [12.0], "age": [3.0]}))[0]
    assert list(answer["probabilities"].values()) == pytest.approx(expected.tolist(), abs=1e-15)


class Unpredictable:
    """Has no predict."""


def bad_samples() -> dict[str, tuple[Any, Any, Any, dict[str, Any]]]:
    model, rows = classifier("one-hot and logistic regression"), sample()
    numbers = table()[["size", "age"]].fillna(30.0)
    return {
        "not fitted": (make_pipeline(StandardScaler(), LogisticRegression()), rows, "label", {}),
        "class": (LogisticRegression, rows, "label", {}),
        "transformer": (StandardScaler().fit(numbers), rows, "label", {}),
        "other object": (Unpredictable(), rows, "label", {}),
        "missing column": (model, rows.drop(columns="city"), "label", {}),
        "texts for numbers": (model, rows.assign(size="big"), "label", {}),
        "numbers for texts": (model, rows.assign(city=1.5), "label", {}),
        "unknown label": (model, rows.assign(label="perhaps"), "label", {}),
        "no such target": (model, rows, "other", {}),
        "target is a feature": (model, rows, "size", {}),
        "empty target": (model, rows.assign(label=None), "label", {}),
        "array with other columns": (of_array(), rows[["size", "label"]], "label", {}),
        "sparse": (model, scipy.sparse.eye(3), None, {}),
        "three dimensions": (model, np.zeros((2, 2, 2)), None, {}),
        "no rows": (model, rows[:0], "label", {}),
        "declared column": (model, rows, "label", {"category": ["other"]}),
        "nullable": (
            LogisticRegression().fit(numbers, table().label),
            numbers.assign(label=table().label),
            "label",
            {"nullable": ["age"]},
        ),
        "unknown option": (model, rows, "label", {"folder": "x"}),
        "texts as target of a regressor": (Ridge().fit(numbers, table().value), numbers.assign(label=table().label), "label", {}),
        "several targets named": (model, rows.assign(b=1), ["label", "b"], {}),
        "labels of another length": (model, rows.drop(columns="label"), [1, 2, 3], {}),
        "columns of two levels": (model, pd.concat({"a": rows}, axis=1), None, {}),
        "twice the same column": (model, pd.concat([rows, rows[["size"]]], axis=1), "label", {}),
    }


@pytest.mark.parametrize("case", bad_samples())
def test_what_cannot_be_adopted_is_one_sentence_and_nothing_is_published(tmp_path: Path, case: str) -> None:
    model, rows, target, options = bad_samples()[case]
    with pytest.raises(UsageError) as refusal:
        quiet(model, rows, target, model_dir=tmp_path / "models", **options)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 500
    assert not Store(tmp_path / "models").entries()


def test_rows_with_a_gap_that_the_model_refuses_are_left_out_and_null_is_refused(tmp_path: Path) -> None:
    numbers = table()[["size", "age"]]
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(numbers.fillna(30.0), table().label)
    published = quiet(model, numbers.assign(label=table().label), "label", model_dir=tmp_path)
    assert "left out" in str(published.report)
    client = client_of(Store(tmp_path))
    assert client.post("/predict", json={"size": 1.0, "age": None}, headers=HEADERS).status_code == 422


def test_a_date_reaches_the_model_as_a_timestamp(tmp_path: Path) -> None:
    frame = table()[["day", "value"]]
    published = quiet(of_dates(), frame, "value", model_dir=tmp_path, force=True)
    assert published.version == 1
    answer = client_of(Store(tmp_path)).post("/predict", json={"day": "2026-03-04"}, headers=HEADERS).json()
    expected = of_dates().predict(pd.DataFrame({"day": pd.Series(["2026-03-04"], dtype="datetime64[us]")}))[0]
    assert answer["prediction"] == pytest.approx(expected, abs=1e-12)


def test_texts_that_the_model_does_not_answer_are_tried_as_dates_to_the_microsecond(tmp_path: Path) -> None:
    hours = FunctionTransformer(methodcaller("apply", attrgetter("dt.hour")))
    days = pd.Series(pd.date_range("2026-03-04 01:00", periods=200, freq="h"))
    frame = pd.DataFrame({"ordered": days, "price": days.dt.hour * 2.0 + 1})
    model = make_pipeline(hours, Ridge(alpha=1e-9)).fit(frame[["ordered"]], frame.price)
    published = quiet(model, frame.assign(ordered=days.astype(str)), "price", model_dir=tmp_path)
    assert published.version == 1
    answer = client_of(Store(tmp_path)).post("/predict", json={"ordered": "2027-05-06 04:00:00"}, headers=HEADERS).json()
    assert answer["prediction"] == pytest.approx(9.0, abs=1e-6)


# --- the command


def adopt(folder: Path, file: Path, *flags: str, rows: pd.DataFrame | None = None) -> int:
    (sample() if rows is None else rows).to_parquet(folder / "rows.parquet", index=False)
    gate = ["--no-tracking", "--importance-seconds", "0", "--model-dir", str(folder / "models")]
    return main(["adopt", str(file), "--sample", str(folder / "rows.parquet"), "--target", "label", *gate, *flags])


def dumped(folder: Path, model: Any, name: str = "model.joblib") -> Path:
    joblib.dump(model, folder / name)
    return folder / name


def test_a_file_is_adopted_by_the_command(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert adopt(tmp_path, dumped(tmp_path, classifier("one-hot and logistic regression")), "--tag", "team", "churn") == 0
    out = capfd.readouterr().out
    assert "ONNX Runtime" in out
    assert "version 1" in out
    entry = Store(tmp_path / "models").entries()[0]
    assert entry.manifest is not None
    assert entry.manifest.tags == {"team": "churn"}


def test_a_skops_file_is_adopted_although_its_types_are_not_trusted_by_skops(tmp_path: Path) -> None:
    skops.io.dump(classifier("ordinal codes and a forest"), tmp_path / "model.skops")
    assert adopt(tmp_path, tmp_path / "model.skops") == 0


def test_a_dry_run_of_the_command_publishes_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert adopt(tmp_path, dumped(tmp_path, classifier("search")), "--dry-run") == 0
    assert "columns" in capfd.readouterr().out
    assert not Store(tmp_path / "models").entries()


def test_a_refused_model_ends_with_exit_code_3(tmp_path: Path) -> None:
    assert adopt(tmp_path, dumped(tmp_path, classifier("search")), "--floor", "accuracy=0.999") == 3
    assert not Store(tmp_path / "models").entries()


def test_a_model_that_replicas_would_refuse_names_what_the_author_can_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("IRIS_ALLOW_JOBLIB", "false")
    assert adopt(tmp_path, dumped(tmp_path, classifier("no probabilities"))) == 3
    reason = next(line for line in capfd.readouterr().err.splitlines() if line.startswith("refused"))
    assert "ONNX" in reason
    assert "IRIS_ALLOW_JOBLIB=true" in reason
    assert not {"training", "estimator"} & set(reason.split())
    assert not Store(tmp_path / "models").entries()


def test_other_columns_than_the_served_model_and_floors_of_coverage_are_refused_without_flags_of_training(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    numbers = table()[["size", "age"]].fillna(30.0)
    assert adopt(tmp_path, dumped(tmp_path, classifier("one-hot and logistic regression"))) == 0
    other = dumped(tmp_path, LogisticRegression().fit(numbers, table().label), "other.joblib")
    for flag in ("--same-columns", "--floor=coverage=0.9"):
        capfd.readouterr()
        assert adopt(tmp_path, other, flag, rows=numbers.assign(label=table().label)) == 2
        error = capfd.readouterr().err.strip().splitlines()[-1]
        assert "train" not in error
        assert "--coverage" not in error
    assert [entry.version for entry in Store(tmp_path / "models").entries()] == [1]


class Attack:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self._folder}/ran",)


def of_another_release() -> bytes:
    raw = pickle.dumps(classifier("one-hot and logistic regression"))
    own = sklearn.__version__.encode()
    other = b"0" + own[1:]
    return raw.replace(own, other)


def test_hostile_and_damaged_files_are_refused_before_they_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    buffer = io.BytesIO()
    joblib.dump(classifier("one-hot and logistic regression"), buffer)
    files = {
        "attack.joblib": pickle.dumps([Attack(tmp_path)]),
        "short.joblib": buffer.getvalue()[:500],
        "text.joblib": b"no model",
        "old.joblib": of_another_release(),
        "module.joblib": pickle.dumps(classifier("one-hot and logistic regression")).replace(
            b"sklearn.compose", b"sklxxxx.compose"
        ),
        "archive.skops": b"PK\x05\x06" + bytes(18),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        assert adopt(tmp_path, tmp_path / name) == 2, name
        error = capfd.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("error: ")
        assert "Traceback" not in error
    assert adopt(tmp_path, tmp_path / "nowhere.joblib") == 2
    assert not (tmp_path / "ran").exists()
    assert not Store(tmp_path / "models").entries()


def test_code_that_is_not_here_names_the_flag_that_brings_it(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    module = tmp_path / "steps_of_the_author.py"
    module.write_text("import numpy as np\ndef squared(rows):\n    return np.square(rows)\n")
    sys.path.insert(0, str(tmp_path))
    try:
        from steps_of_the_author import squared  # type: ignore[import-not-found]

        frame = table()[["size", "age"]].fillna(30.0)
        model = make_pipeline(FunctionTransformer(squared), LogisticRegression()).fit(frame, table().label)
        file = dumped(tmp_path, model)
    finally:
        sys.path.remove(str(tmp_path))
        sys.modules.pop("steps_of_the_author", None)
    rows = frame.assign(label=table().label)
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    assert adopt(folder, file, rows=rows) == 2
    assert "--package steps_of_the_author.py" in capfd.readouterr().err
    assert adopt(folder, file, "--package", str(module), rows=rows) == 0
    client = client_of(Store(folder / "models"))
    answer = client.post("/predict", json={"size": 12.0, "age": 3.0}, headers=HEADERS).json()
    expected = model.predict_proba(pd.DataFrame({"size": [12.0], "age": [3.0]}))[0]
    assert list(answer["probabilities"].values()) == pytest.approx(expected.tolist(), abs=1e-15)


DUMPING = """
import json, os, pathlib
import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin

class Dumps(BaseEstimator, TransformerMixin):
    def fit(self, X, y=None):
        self.fitted_ = True
        return self

    def transform(self, X):
        pathlib.Path(os.environ["DUMP_FILE"]).write_text(json.dumps(dict(os.environ)))
        return np.asarray(X)
"""


def test_the_code_of_a_model_sees_no_key_and_no_login_and_the_bundle_is_signed_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private, public = key_pair(tmp_path, "trainer")
    (tmp_path / "dumping_step.py").write_text(DUMPING)
    monkeypatch.syspath_prepend(tmp_path)
    step = importlib.import_module("dumping_step").Dumps()
    monkeypatch.setenv("DUMP_FILE", str(tmp_path / "environment.json"))
    numbers = table()[["size", "age"]].fillna(30.0)
    file = dumped(tmp_path, make_pipeline(StandardScaler(), step, LogisticRegression()).fit(numbers, table().label))
    (tmp_path / "environment.json").unlink()
    monkeypatch.setenv("IRIS_SIGNING_KEY", str(private))
    monkeypatch.setenv("IRIS_VERIFY_KEY", str(public))
    for name in SECRET_NAMES:
        monkeypatch.setenv(name, "sqlite:///secret-word" if name == "MLFLOW_TRACKING_URI" else "secret-word")
    package = ["--package", str(tmp_path / "dumping_step.py")]
    assert adopt(tmp_path, file, *package, rows=numbers.assign(label=table().label)) == 0
    seen = json.loads((tmp_path / "environment.json").read_text())
    assert not [name for name in seen if name.startswith("IRIS_")]
    assert not {*SECRET_NAMES} & set(seen)
    assert not [name for name, value in seen.items() if "secret-word" in value or str(private) in value]
    entry = Store(tmp_path / "models").entries()[0]
    assert verifier(public)(entry.digest, (entry.folder / SEAL).read_bytes())


SECRET_NAMES = (
    *("API_KEY", "API_KEY_PREVIOUS", "MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"),
    *("MLFLOW_TRACKING_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "GOOGLE_APPLICATION_CREDENTIALS"),
    *("GITHUB_TOKEN", "PGPASSWORD", "RAY_AUTH_TOKEN"),
)


@pytest.mark.parametrize(
    ("mlflow", "buckets", "kept"),
    [
        (False, False, {"PATH", "TOKENIZERS_PARALLELISM"}),
        (False, True, {"PATH", "TOKENIZERS_PARALLELISM", "AWS_SECRET_ACCESS_KEY"}),
        (
            True,
            True,
            {"PATH", "TOKENIZERS_PARALLELISM", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_URI"},
        ),
    ],
)
def test_logins_are_left_where_the_process_needs_them(
    monkeypatch: pytest.MonkeyPatch, mlflow: bool, buckets: bool, kept: set[str]
) -> None:
    names = ("PATH", "TOKENIZERS_PARALLELISM", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_URI")
    for name in (*names, "IRIS_SIGNING_KEY", "IRIS_SECRETS_DIR", "API_KEY", "GITHUB_TOKEN"):
        monkeypatch.setenv(name, os.environ["PATH"])
    environment = environment_for_model(mlflow=mlflow, buckets=buckets)
    watched = {*names, "IRIS_SIGNING_KEY", "IRIS_SECRETS_DIR", "API_KEY", "GITHUB_TOKEN"}
    assert watched & set(environment) == kept


def test_a_model_that_needs_too_much_memory_or_time_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    large = {"zeros": np.zeros(80_000_000), "model": OneHotEncoder()}
    file = tmp_path / "large.joblib"
    joblib.dump(large, file, compress=("zlib", 1))
    assert adopt(tmp_path, file, "--memory", "0.5") == 2
    assert "--memory" in capfd.readouterr().err
    assert adopt(tmp_path, dumped(tmp_path, classifier("search")), "--seconds", "1") == 2
    assert "--seconds" in capfd.readouterr().err
    assert not Store(tmp_path / "models").entries()


@pytest.mark.parametrize(
    "flags", [["--category", "size", "--number", "size"], ["--held-out"], ["--category", "label"], ["--package", "nothing.txt"]]
)
def test_flags_that_do_not_fit_are_refused(tmp_path: Path, flags: list[str]) -> None:
    file = dumped(tmp_path, classifier("search"))
    arguments = [
        "adopt",
        str(file),
        "--sample",
        "rows.parquet",
        *(["--target", "label"] if "--held-out" not in flags else []),
        *flags,
    ]
    assert main(arguments) == 2
