"""Models that learn from dates: the same numbers in training, requests and scoring, with both backends."""

from __future__ import annotations

import datetime as dt
import io
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import orjson
import pandas as pd
import pytest
import skops.io
from hypothesis import given
from hypothesis import strategies as st

from serve_app.artifacts.dates import MICROSECONDS, DateForm, Part
from serve_app.artifacts.names import CARD
from serve_app.artifacts.read_policy import BackendChoice
from serve_app.artifacts.signature import Feature, Signature
from serve_app.artifacts.skops_format import skops_to_joblib
from serve_app.artifacts.store import Store
from serve_app.batch.pool import in_process
from serve_app.batch.run import score
from serve_app.batch.score_options import ScoreOptions
from serve_app.inference.backends.onnx_backend import OnnxBackend
from serve_app.inference.date_parts import DateCoder, DateParts, date_parts
from serve_app.inference.predictor import open_predictor
from tests.support import tables
from tests.support.apps import HEADERS, client_of
from tests.support.estimators import INSTALLED
from tests.support.policies import load_policy
from tests.support.scoring import as_answers, results, trained
from training import fit
from training.candidate import fit_candidate
from training.convert import to_onnx
from training.dataset import load
from training.iris_api_pyfunc import TableModel
from training.train_options import parse_date, parse_epoch

PARTS: tuple[Part, ...] = ("days", "year", "month", "day", "weekday", "hour")
FORM = DateForm(PARTS)
BACKENDS: tuple[BackendChoice, ...] = ("onnx", "scikit-learn")


def sent(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows with the texts of the table, as a client that reads the same file sends them."""
    return [{str(name): None if value != value else value for name, value in row.items()} for row in table.to_dict("records")]


@given(st.datetimes())
def test_the_parts_are_those_of_the_calendar(moment: dt.datetime) -> None:
    moment = moment.replace(microsecond=0)
    microseconds = round((moment - dt.datetime(1970, 1, 1)) / dt.timedelta(microseconds=1))  # noqa: DTZ001
    code = np.array([microseconds / MICROSECONDS])
    parts = dict(zip(PARTS, (float(part[0]) for part in date_parts(code, PARTS, 10.0)), strict=True))
    assert parts["days"] == code[0] - 10.0
    assert (parts["year"], parts["month"], parts["day"]) == (moment.year, moment.month, moment.day)
    assert parts["weekday"] == moment.isoweekday()
    assert parts["hour"] == pytest.approx(moment.hour + moment.minute / 60 + moment.second / 3600, abs=1e-7)


def test_onnx_computes_every_day_and_any_moment_without_a_difference() -> None:
    from sklearn.linear_model import LinearRegression
    from sklearn.pipeline import Pipeline

    random = np.random.default_rng(0)
    days = np.arange(-719_162.0, 2_932_897.0, 7.0)
    codes = np.concatenate(
        [days, random.uniform(-719_162, 2_932_896, 50_000), np.rint(random.uniform(0, 20_000 * 24, 50_000)) / 24]
    )
    matrix = np.column_stack([random.uniform(size=len(codes)), codes])
    signature = Signature((Feature("x"), Feature("day", "date", date=FORM)), "regression")
    for at in range(7):
        regression = LinearRegression()
        regression.coef_, regression.intercept_, regression.n_features_in_ = np.eye(7)[at], np.float64(0.0), 7
        step = DateParts([1], [PARTS], [365.0]).fit(matrix)
        model = to_onnx(Pipeline([("dates", step), ("model", regression)]), signature, "float64", float64_operators=True)
        assert (OnnxBackend(model, signature, rounded=False).scores(matrix) == step.transform(matrix)[:, at]).all()


def test_a_gap_is_a_gap_in_every_part() -> None:
    matrix = np.array([[np.nan, 1.0], [0.0, 2.0]])
    parts = DateParts([0], [PARTS], [0.0]).fit(matrix).transform(matrix)
    assert np.isnan(parts[0]).tolist() == [True] * 6 + [False]
    assert parts[1].tolist() == [0.0, 1970.0, 1.0, 1.0, 4.0, 0.0, 2.0]


@pytest.mark.parametrize("estimator", INSTALLED)
@pytest.mark.parametrize("backend", BACKENDS)
def test_training_requests_and_scoring_give_the_same_numbers(tmp_path: Path, estimator: str, backend: BackendChoice) -> None:
    table = tables.visits()
    path = tables.written(table, tmp_path)
    store = trained(tmp_path, path, "stays", estimator=estimator)
    bundle = store.current()
    assert bundle is not None
    assert bundle.manifest.onnx is not None
    assert bundle.manifest.onnx.available or bundle.manifest.native is not None
    assert [feature.kind for feature in bundle.manifest.signature.features] == [*["date"] * 5, "category"]  # type: ignore[union-attr]

    dataset = load(path, target="stays")
    candidate = fit_candidate(dataset, estimator, {}, random_state=42)
    if backend == "onnx" and not bundle.manifest.onnx.available:
        backend = "auto"  # CatBoost computes splits by category itself
    predictor = open_predictor(bundle, load_policy(backend=backend))
    trained_scores = predictor.scores(candidate.held_out)
    assert np.abs(trained_scores - candidate.scores).max() <= 1e-5

    features = table.drop(columns="stays")
    with client_of(store, policy=load_policy(backend=backend)) as client:
        reply = client.post("/predict/batch", json={"instances": sent(features)}, headers=HEADERS)
        single = client.post("/predict", json=sent(features)[7], headers=HEADERS)
    assert reply.status_code == single.status_code == 200, reply.text
    answers = reply.json()["predictions"]
    assert single.json()["prediction"] == answers[7]["prediction"]
    for ending in ("csv", "parquet"):
        again = tables.written(features, tmp_path, f"again.{ending}")
        out = str(tmp_path / f"out_{ending}")
        options = ScoreOptions(data=str(again), out=out, model_dir=tmp_path / "models", prefer=backend)
        score(options, lambda _: nullcontext(), in_process)
        assert as_answers(results(Path(out))) == answers
    assert np.mean([answer["prediction"] == truth for answer, truth in zip(answers, table["stays"], strict=True)]) > 0.9


def test_types_of_parquet_are_scored_as_the_texts_that_a_client_sends(tmp_path: Path) -> None:
    moments = pd.Series(pd.date_range("2001-01-01", periods=200, freq="37h"))
    table = pd.DataFrame(
        {
            "naive": moments,
            "zoned": moments.dt.tz_localize("Europe/Berlin", ambiguous="NaT", nonexistent="NaT"),
            "day": [moment.date() for moment in moments],
            "time": [moment.time() for moment in moments],
            "load": moments.dt.hour + moments.dt.month * 10.0,
        }
    )
    table.loc[::7, "naive"] = pd.NaT
    table.to_parquet(tmp_path / "t.parquet")
    store = trained(tmp_path, tmp_path / "t.parquet", "load")
    out = tmp_path / "out"
    score(
        ScoreOptions(data=str(tmp_path / "t.parquet"), out=str(out), model_dir=tmp_path / "models"),
        lambda _: nullcontext(),
        in_process,
    )
    rows = table.drop(columns="load").to_dict("records")
    texts = [{name: None if value is pd.NaT else value.isoformat() for name, value in row.items()} for row in rows]
    with client_of(store) as client:
        reply = client.post("/predict/batch", json={"instances": texts}, headers=HEADERS)
    assert reply.status_code == 200, reply.text
    assert as_answers(results(out)) == reply.json()["predictions"]


def test_the_pickle_takes_the_training_table(tmp_path: Path) -> None:
    table = tables.visits()
    dataset = load(tables.written(table, tmp_path), target="stays")
    candidate = fit_candidate(dataset, "random-forest", {}, random_state=0)
    model = joblib.load(io.BytesIO(candidate.pickle))
    assert (model.predict(table.drop(columns="stays")).astype(str) == table["stays"]).mean() > 0.9
    assert (model.predict_proba(dataset.test) == candidate.scores).all()


def test_a_coder_takes_texts_and_timestamps_and_codes() -> None:
    moment = pd.Timestamp("2000-01-31 12:00")
    for column in ([moment, pd.NaT], ["2000-01-31T12:00:00", None], [10_987.5, np.nan]):
        codes = DateCoder(PARTS).fit(pd.DataFrame({"when": column})).transform(pd.DataFrame({"when": column}))
        assert codes[0, 0] == 10_987.5
        assert np.isnan(codes[1, 0])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("arrived", "2001-02-30"),
        ("arrived", "13/13/2001 1:00 PM"),
        ("arrived", "2001-02-03T04:05:06Z"),
        ("arrived", 5),
        ("arrived", None),
        ("zoned", "2001-02-03T04:05:06"),
        ("opens", "25:00"),
        ("born", "yesterday"),
    ],
)
def test_a_wrong_date_is_refused_by_its_field(tmp_path_factory: pytest.TempPathFactory, field: str, value: Any) -> None:
    folder = tmp_path_factory.getbasetemp() / "dates"
    if not folder.exists():
        folder.mkdir()
        trained(folder, tables.written(tables.visits(), folder), "stays", n_estimators=3)
    row = {**sent(tables.visits().drop(columns="stays"))[1], field: value}
    with client_of(Store(folder / "models")) as client:
        for path, body in (("/predict", row), ("/predict/batch", {"instances": [row]})):
            reply = client.post(path, json=body, headers=HEADERS)
            assert reply.status_code == 422
            assert field in reply.text


def test_the_pages_describe_dates(tmp_path: Path) -> None:
    store = trained(tmp_path, tables.written(tables.visits(), tmp_path), "stays", n_estimators=3)
    with client_of(store) as client:
        features = {feature["name"]: feature for feature in client.get("/model", headers=HEADERS).json()["signature"]["features"]}
        row = client.get("/openapi.json", headers=HEADERS).json()["components"]["schemas"]["Row"]
        reply = client.post("/predict", json=row["example"], headers=HEADERS)
    (card, *_) = (tmp_path / "models").rglob(CARD)
    assert "2001-02-05T11:09:00 to 2003-07-20T11:44:00" in card.read_text()
    assert features["arrived"]["date"] == {"parts": list(PARTS), "formats": ["%m/%d/%Y %I:%M %p"], "zoned": False}
    assert features["opens"]["date"]["parts"] == ["hour"]
    assert "date" not in features["plan"]
    assert row["properties"]["arrived"]["type"] == "string"
    assert "%m/%d/%Y %I:%M %p" in row["properties"]["arrived"]["description"]
    assert reply.status_code == 200, reply.text


def test_seconds_of_an_epoch_are_sent_as_numbers(tmp_path: Path) -> None:
    seconds = np.arange(200) * 7200 + 1_000_000_000
    table = pd.DataFrame({"seen": seconds, "load": (seconds // 3600 % 24).astype(float)})
    store = trained(tmp_path, tables.written(table, tmp_path), "load", epoch=_epoch("seen", "s"))
    bundle = store.current()
    assert bundle is not None
    with client_of(store) as client:
        rows = [{"seen": int(seconds[3])}, {"seen": float(seconds[3])}, {"seen": str(seconds[3])}, {"seen": "2001-09-09T07:46:40"}]
        reply = client.post("/predict/batch", json={"instances": rows}, headers=HEADERS)
    assert reply.status_code == 200, reply.text
    assert len({answer["prediction"] for answer in reply.json()["predictions"]}) == 1
    score(
        ScoreOptions(data=str(tmp_path / "table.csv"), out=str(tmp_path / "out"), model_dir=tmp_path / "models"),
        lambda _: nullcontext(),
        in_process,
    )
    assert as_answers(results(tmp_path / "out"))[3] == reply.json()["predictions"][0]


def test_a_number_that_means_a_missing_value_is_a_gap_everywhere(tmp_path: Path) -> None:
    days = pd.Series(20010101 + np.arange(200) % 28).astype(object).where(np.arange(200) % 9 > 0, -999)
    table = pd.DataFrame({"day": days, "seen": days.where(days == -999, 1_000_000_000), "load": np.arange(200) % 28 + 0.5})
    path = tables.written(table, tmp_path)
    store = trained(tmp_path, path, "load", date=[parse_date("day=%Y%m%d")], epoch=[parse_epoch("seen=s")], na=["-999"])
    with client_of(store) as client:
        rows = [{"day": day, "seen": seen} for day in (-999, "-999", -999.0, None) for seen in (-999, "-999", None)]
        reply = client.post(
            "/predict/batch", json={"instances": [*rows, {"day": 20010103, "seen": 1_000_000_000}]}, headers=HEADERS
        )
    assert reply.status_code == 200, reply.text
    gap, *others, known = (answer["prediction"] for answer in reply.json()["predictions"])
    assert set(others) == {gap}
    for ending in ("csv", "parquet"):
        again = tmp_path / f"again.{ending}"
        floats = table.drop(columns="load").astype(float)
        floats.to_csv(again, index=False) if ending == "csv" else floats.to_parquet(again)
        out = tmp_path / ending
        score(ScoreOptions(data=str(again), out=str(out), model_dir=tmp_path / "models"), lambda _: nullcontext(), in_process)
        predictions = [row["prediction"] for row in results(out)]
        assert (predictions[0], predictions[2]) == (gap, known)


def test_the_model_in_mlflow_answers_to_its_training_table_what_is_served(tmp_path: Path) -> None:
    table = tables.visits()
    dataset = load(tables.written(table, tmp_path), target="stays")
    candidate = fit_candidate(dataset, "random-forest", {"n_estimators": 5}, random_state=0)
    logged = TableModel(candidate.model, orjson.loads(orjson.dumps(candidate.signature.to_dict())))
    answers = logged.predict(table)
    moments = table.assign(zoned=pd.to_datetime(table["zoned"]), born=pd.to_datetime(table["born"], format="%d %b %Y"))
    assert (logged.predict(moments) == answers).all()
    assert (answers == candidate.model.predict(table.drop(columns="stays"))).all()


def _epoch(column: str, unit: str) -> Any:
    return [parse_epoch(f"{column}={unit}")]


def test_a_signature_without_dates_is_written_as_before() -> None:
    signature = Signature((Feature("x"),), "regression")
    assert b'"date"' not in orjson.dumps(signature.to_dict())
    assert fit.with_parts(signature) == list(signature.features)


def test_the_format_of_mlflow_holds_a_model_with_dates(tmp_path: Path) -> None:
    table = tables.visits().drop(columns=["plan", "born"])
    dataset = load(tables.written(table, tmp_path), target="stays")
    candidate = fit_candidate(dataset, "logistic-regression", {}, random_state=0)
    skops.io.dump(candidate.model, tmp_path / "model.skops")
    model = joblib.load(io.BytesIO(skops_to_joblib(tmp_path / "model.skops", 1 << 30)))
    assert (model.predict(table.drop(columns="stays")) == candidate.model.predict(table.drop(columns="stays"))).all()
