"""Tables of pandas become the rows that requests would have been coded to, and the model gets the table of its fit."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pytest

from serve_app.artifacts.dates import DateForm, encode
from serve_app.artifacts.manifest import Frame
from serve_app.artifacts.signature import Feature, Signature
from serve_app.inference.coded_tables import code, framed

pytestmark = pytest.mark.unit

FEATURES = (
    Feature("size", "number"),
    Feature("member", "boolean", nullable=True),
    Feature("branch", "category", categories=("10", "20"), nullable=True),
    Feature("plan", "category", categories=("basic", "plus")),
    Feature("note", "text"),
    Feature("day", "date", date=DateForm(("days",), (), zoned=False)),
)
SIGNATURE = Signature(FEATURES, task="regression", target="value")
TABLE = pd.DataFrame(
    {
        "size": [1, 2, 3],
        "member": pd.array([True, None, False], dtype="boolean"),
        "branch": [10.0, np.nan, 30.0],
        "plan": pd.Categorical(["plus", "basic", "plus"]),
        "note": ["late", "in time", ""],
        "day": pd.to_datetime(["2026-01-01", "2026-01-02", "2026-01-03"]),
        "other": [None, None, None],
    }
)
DAYS = [encode(moment) for moment in (pd.to_datetime(TABLE["day"]).astype("datetime64[us]").astype("int64")).tolist()]
NAN = float("nan")
CODED = [[1.0, 1.0, 0.0, 1.0, "late", DAYS[0]], [2.0, NAN, NAN, 0.0, "in time", DAYS[1]], [3.0, 0.0, -1.0, 1.0, "", DAYS[2]]]


def same(matrix: Any, rows: list[list[Any]]) -> bool:
    cells = [
        (one, other) for left, right in zip(matrix.tolist(), rows, strict=True) for one, other in zip(left, right, strict=True)
    ]
    return all(one == other or (one != one and other != other) for one, other in cells)


def test_every_kind_of_column_is_coded() -> None:
    assert same(code(TABLE, SIGNATURE), CODED)


@pytest.mark.parametrize(
    "forms",
    [
        {"size": [Decimal(1), Decimal(2), Decimal(3)], "branch": ["10", None, "30"]},
        {"member": [True, None, False], "branch": pd.array([10, None, 30], dtype="Int64")},
        {"day": ["2026-01-01", "2026-01-02", "2026-01-03"], "plan": ["plus", "basic", "plus"]},
        {"day": [dt.date(2026, 1, 1), dt.date(2026, 1, 2), dt.date(2026, 1, 3)], "size": TABLE["size"].astype("float32")},
    ],
)
def test_the_form_of_a_column_does_not_matter(forms: dict[str, Any]) -> None:
    assert same(code(TABLE.assign(**forms)[TABLE.columns[::-1]].set_index("other"), SIGNATURE), CODED)


def test_a_column_that_takes_null_may_be_left_out() -> None:
    coded = code(TABLE.drop(columns="branch"), SIGNATURE)
    assert same(coded, [[*row[:2], NAN, *row[3:]] for row in CODED])


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda table: table.drop(columns="size"), "'size'"),
        (lambda table: table.assign(size=[1.0, np.nan, 2.0]), "'size'.*row 2"),
        (lambda table: table.assign(plan=[1, 2, 3], note=["a", "b", 3.5]), "'note'.*row 3"),
        (lambda table: table.assign(day=["2026-01-01", "2026-01-02", "soon"]), "'day'.*row 3"),
    ],
)
def test_what_serving_refuses_is_an_error_that_names_the_column(spoil: Any, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        code(spoil(TABLE), SIGNATURE)


def test_the_model_gets_the_table_of_its_fit() -> None:
    class Keeps:
        seen: Any = None

        def predict(self, table: Any) -> Any:
            self.seen = table
            return np.zeros(len(table))

    model = Keeps()
    dtypes = {"size": "int64", "member": "boolean", "branch": "float64", "plan": "category", "note": "str", "day": "datetime64[us]"}
    frame = Frame(dtypes=dtypes, values={"branch": (10.0, 20.0)}, order={"plan": (1, 0)}, ordered=("plan",))
    estimator, coder = framed(model, SIGNATURE.to_dict(), frame.to_dict())
    assert estimator.predict(coder(TABLE)).tolist() == [0.0, 0.0, 0.0]
    assert {name: str(dtype) for name, dtype in model.seen.dtypes.items()} == dtypes
    assert model.seen["branch"].tolist()[0] == 10.0
    assert model.seen["branch"].tolist()[2] not in (10.0, 20.0)
    assert model.seen["plan"].tolist() == ["plus", "basic", "plus"]
    assert model.seen["plan"].cat.categories.tolist() == ["plus", "basic"]
    assert model.seen["day"].tolist() == TABLE["day"].tolist()
