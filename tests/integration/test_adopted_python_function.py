"""The `python_function` of an adopted model in MLflow answers what its bundle serves, or says what to install."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import RandomForestRegressor
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler

from serve_app.artifacts.store import Store
from serve_app.cli import main
from tests.support.apps import HEADERS, client_of
from tests.support.fitted_models import FITTED, MIXED, classifier, of_texts, table

pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow uses what SQLAlchemy will remove

ASKED = 30
STEPS = """
import numpy as np
import pandas as pd


def parts(frame):
    day = frame["day"].dt
    codes = pd.Categorical(frame["plan"]).codes if frame["plan"].dtype != "category" else frame["plan"].cat.codes
    return np.column_stack([day.day_of_week, day.month, frame["age"], np.asarray(codes)])
"""


@dataclass(frozen=True)
class Adopted:
    """A fitted model, its sample, the target and flags."""

    model: Any
    sample: pd.DataFrame
    target: str
    flags: tuple[str, ...] = ()


def of_own_code(folder: Path) -> Adopted:
    """A step of the author over a date and a column of dtype category, whose code travels as a package."""
    (folder / "steps_of_author.py").write_text(STEPS)
    sys.path.insert(0, str(folder))
    try:
        from importlib import import_module

        parts = import_module("steps_of_author").parts
    finally:
        sys.path.remove(str(folder))
    frame = table()[["day", "age", "plan", "value"]].fillna({"age": 30.0}).astype({"plan": pd.CategoricalDtype(["plus", "basic"])})
    model = make_pipeline(FunctionTransformer(parts), StandardScaler(), RandomForestRegressor(5, random_state=0))
    model.fit(frame[:FITTED].drop(columns="value"), frame.value[:FITTED])
    return Adopted(model, frame, "value", ("--package", str(folder / "steps_of_author.py")))


def of_one_text() -> Adopted:
    """A pipeline that takes a list of texts."""
    frame = table()[["note"]].assign(label=["late" if "late" in note else "in time" for note in table().note])
    return Adopted(
        make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(frame.note[:FITTED], frame.label[:FITTED]), frame, "label"
    )


def of_whole_numbers() -> Adopted:
    """Whole numbers that an encoder takes for categories, beside free text."""
    frame = table()[["note"]].assign(branch=np.arange(len(table())) % 3 * 10)
    frame["label"] = [
        "late" if "late" in note or branch == 20 else "in time" for note, branch in zip(frame.note, frame.branch, strict=True)
    ]
    prepare = ColumnTransformer(
        [("words", TfidfVectorizer(), "note"), ("branch", OneHotEncoder(handle_unknown="ignore"), ["branch"])]
    )
    model = make_pipeline(prepare, LogisticRegression())
    return Adopted(model.fit(frame[:FITTED].drop(columns="label"), frame.label[:FITTED]), frame, "label")


MODELS: dict[str, Callable[[Path], Adopted]] = {
    "coded rows": lambda _: Adopted(classifier("imputed texts"), table()[[*MIXED, "unused", "label"]], "label"),
    "text beside a number": lambda _: Adopted(of_texts(), table()[["note", "size", "label"]], "label"),
    "text alone": lambda _: of_one_text(),
    "own code over a date and dtype category": of_own_code,
    "whole numbers": lambda _: of_whole_numbers(),
}

ON_TABLES = {"own code over a date and dtype category"}
"""Models that take the table of their fit while serving, too."""

LOADED = """
import json, sys, warnings
warnings.simplefilter("ignore")
if sys.argv[4] == "without":
    sys.modules["serve_app"] = None
import mlflow, pandas
mlflow.set_tracking_uri(sys.argv[1])
try:
    model = mlflow.pyfunc.load_model("models:/Adopted@champion")
except ImportError as error:
    print(json.dumps({"error": str(error)}))
    sys.exit()
table = pandas.read_parquet(sys.argv[2]).drop(columns=sys.argv[3])
print(json.dumps({"answers": model.predict(table).tolist(), "example": len(model.predict(model.input_example)),
                  "own": "serve_app" in sys.modules and sys.modules["serve_app"] is not None}))
"""


def adopted(folder: Path, name: str) -> Adopted:
    """Adopt the model with tracking into a registry of this folder."""
    model = MODELS[name](folder)
    joblib.dump(model.model, folder / "model.joblib")
    model.sample.to_parquet(folder / "rows.parquet", index=False)
    model.sample.tail(ASKED).to_parquet(folder / "asked.parquet", index=False)
    flags = ["--sample", str(folder / "rows.parquet"), "--target", model.target, "--model-dir", str(folder / "models")]
    gate = ["--tracking-uri", f"sqlite:///{folder}/mlflow.db", "--model-name", "Adopted", "--importance-seconds", "0", "--force"]
    sys.modules.pop("steps_of_author", None)
    before = Path.cwd()
    os.chdir(folder)  # the files of runs go below the working folder
    try:
        assert main(["adopt", str(folder / "model.joblib"), *flags, *model.flags, *gate]) == 0
    finally:
        os.chdir(before)
    return model


def sent(value: Any) -> Any:
    """A cell as a client sends it."""
    if pd.isna(value):
        return None
    return value.isoformat() if isinstance(value, pd.Timestamp) else value


def loaded(folder: Path, target: str, way: str = "with") -> dict[str, Any]:
    """What a program elsewhere gets of the registered model."""
    command = [sys.executable, "-P", "-c", LOADED, f"sqlite:///{folder}/mlflow.db", str(folder / "asked.parquet"), target, way]
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "MLFLOW_DISABLE_TELEMETRY": "true"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


@pytest.mark.parametrize("name", MODELS)
def test_the_registered_model_answers_the_author_s_table_as_the_bundle_does(tmp_path: Path, name: str) -> None:
    model = adopted(tmp_path, name)
    store = Store(tmp_path / "models")
    bundle = store.current(None)
    assert bundle is not None
    assert (bundle.manifest.frame is not None) == (name in ON_TABLES)
    asked = model.sample.tail(ASKED).drop(columns=model.target).reset_index(drop=True)
    rows = [{name: sent(value) for name, value in row.items()} for row in asked.astype(object).to_dict("records")]
    reply = client_of(store).post("/predict/batch", json={"instances": rows}, headers=HEADERS)
    assert reply.status_code == 200, reply.text
    expected = [answer["prediction"] for answer in reply.json()["predictions"]]
    found = loaded(tmp_path, model.target)
    assert found["own"] == (name in ON_TABLES)
    assert found["example"] == 1
    if model.target == "value":
        assert found["answers"] == pytest.approx(expected, rel=1e-12)
        assert found["answers"] == pytest.approx(model.model.predict(model.sample.tail(ASKED).drop(columns="value")).tolist())
    else:
        assert found["answers"] == expected
        assert len(set(expected)) == 2


def test_a_model_that_takes_the_table_of_its_fit_says_what_to_install_where_iris_api_is_missing(tmp_path: Path) -> None:
    model = adopted(tmp_path, "own code over a date and dtype category")
    error = loaded(tmp_path, model.target, "without")["error"]
    assert "pip install" in error
    assert "iris-api" in error
    assert len(error.splitlines()) == 1


def test_a_model_of_coded_rows_is_loaded_where_iris_api_is_missing(tmp_path: Path) -> None:
    model = adopted(tmp_path, "coded rows")
    assert len(loaded(tmp_path, model.target, "without")["answers"]) == ASKED
