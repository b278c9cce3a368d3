"""pandas tables as coded rows, for a model that MLflow loads and that takes the table of its fit."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from serve_app.artifacts.fields import read_rows
from serve_app.artifacts.frame_columns import check_frame
from serve_app.artifacts.manifest import Frame
from serve_app.artifacts.matrix import Matrix
from serve_app.artifacts.signature import Feature, Signature, label_text
from serve_app.errors import InvalidInput
from serve_app.inference.backends.frame_backend import FramedEstimator, frame_builder

if TYPE_CHECKING:
    import pandas as pd


def framed(
    estimator: Any, signature: Mapping[str, Any], frame: Mapping[str, Any]
) -> tuple[FramedEstimator, Callable[[pd.DataFrame], Matrix]]:
    """The estimator on coded rows, and the function from a table to coded rows, shape (rows, features), as in a replica.

    `signature` and `frame` are the JSON objects of the manifest. Raises BundleRefused and ValueError for other objects.
    """
    columns, form = Signature.from_dict(signature), Frame.from_dict(frame)
    check_frame(form, columns)
    return FramedEstimator(estimator, frame_builder(columns, form)), lambda table: code(table, columns)


def code(table: pd.DataFrame, signature: Signature) -> Matrix:
    """The coded rows of a table, without columns that the signature does not name.

    Raises ValueError for a missing column, and for a value that a replica would refuse. The model gets unknown categories as
    unseen.
    """
    features = [feature for feature in signature.features if feature.name in table.columns]
    for feature in signature.features:
        if feature.name not in table.columns and not feature.nullable:
            raise ValueError(f"the table has no column '{feature.name}', which the model needs")
    columns = [[_sent(feature, value) for value in table[feature.name].astype(object)] for feature in features]
    names = [feature.name for feature in features]
    rows = [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]
    try:
        return read_rows(signature, rows, unknown="unseen")
    except InvalidInput as error:
        row, _, name = error.problems[0].field.partition(".")
        raise ValueError(f"column '{name}' {error.problems[0].message} (row {int(row.strip('[]')) + 1})") from None


def _sent(feature: Feature, value: Any) -> Any:
    """A cell as the value in a request: None for a missing value, dates as text."""
    import pandas as pd

    if value is None or value is pd.NA or value is pd.NaT or value != value:
        return None
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, pd.Timestamp):
        return value.floor("us").isoformat()
    if isinstance(value, dt.date | dt.time):
        return value.isoformat()
    if feature.kind == "category":
        return _category(feature, value)
    return float(value) if isinstance(value, Decimal) else value


def _category(feature: Feature, value: Any) -> Any:
    """The text of a category that was not a text in the fit. A column with missing values may hold whole numbers as floats."""
    if not isinstance(value, bool | int | float):
        return value
    whole = [label_text(int(value))] if isinstance(value, float) and value.is_integer() else []
    texts = [label_text(value), str(value), *whole]
    return next((text for text in texts if text in feature.categories), texts[0])
