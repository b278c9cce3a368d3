"""`from training import publish`: adopts a model inside the process of a notebook or script."""

from __future__ import annotations

import html
import io
import os
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from serve_app.artifacts.manifest import sha256
from serve_app.errors import UsageError
from serve_app.printable import printable
from serve_app.progress import Progress, step
from training import adopt_gate, adopt_report, model_file
from training.adopt_options import GATE
from training.adopt_report import AdoptReport
from training.adoption import Given, Sample, adopt
from training.derived_signature import Declared
from training.pickle_contents import PickleContents, look
from training.pipeline import Outcome
from training.train_options import Floor, Tag, TrainOptions

LABELS = "target"
"""The name of the target when `target` holds labels instead of the name of a column."""

_ENVIRONMENT = {
    "model_dir": "MODEL_DIR",
    "model_alias": "IRIS_MODEL_ALIAS",
    "tracking_uri": "MLFLOW_TRACKING_URI",
    "signing_key": "IRIS_SIGNING_KEY",
}


@dataclass(frozen=True, slots=True)
class Published:
    """The report and the outcome of the gate; `outcome` is None after a dry run."""

    report: AdoptReport
    outcome: Outcome | None

    @property
    def version(self) -> int | None:
        """The new served version; None when nothing was published."""
        return None if self.outcome is None or self.outcome.entry is None else self.outcome.entry.version

    @property
    def reasons(self) -> tuple[str, ...]:
        """The reasons for a refusal; empty when the model was accepted, and after a dry run."""
        return () if self.outcome is None else self.outcome.verdict.reasons

    @property
    def sentence(self) -> str:
        """The outcome in one sentence."""
        if self.outcome is None:
            return "dry run: nothing was recorded or published"
        if self.version is None:
            return f"refused, nothing was published: {'; '.join(self.reasons)}"
        return f"version {self.version} is published and served from now on"

    def __str__(self) -> str:
        return f"{self.report}\n{printable(self.sentence)}"

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        """Return the report and the sentence as HTML for a notebook cell."""
        return f"{self.report._repr_html_()}<p><b>{html.escape(printable(self.sentence))}</b></p>"


def publish(
    model: Any,
    sample: Any,
    target: Any = None,
    *,
    category: Sequence[str] = (),
    number: Sequence[str] = (),
    date: Sequence[str] | Mapping[str, str] = (),
    nullable: Sequence[str] = (),
    package: Sequence[str | Path] = (),
    held_out: bool = False,
    dry_run: bool = False,
    progress: Progress = step,
    **gate: Any,
) -> Published:
    """Adopt a fitted model: see `training.publish`."""
    given = _given(model, model_file.pack([Path(path) for path in ([package] if isinstance(package, str | Path) else package)]))
    frame, names = _frame(sample, target)
    options = _gate(gate)
    dates = {
        column: (form,) if form else () for column, form in (date.items() if isinstance(date, Mapping) else [(d, "") for d in date])
    }
    adoption = adopt(
        given,
        Sample(
            frame=frame,
            name=f"{len(frame)} rows of a data frame",
            sha256=sha256(frame.to_csv(index=False).encode("utf-8", "surrogatepass")),
            targets=names,
            held_out=held_out,
        ),
        Declared(category=tuple(category), number=tuple(number), date=dates, nullable=tuple(nullable)),
        progress,
    )
    report = adopt_report.report(adoption, "nothing: it was in memory")
    return Published(report, None if dry_run else adopt_gate.pass_gate(adoption, options, progress))


def _given(model: Any, packages: Mapping[str, bytes]) -> Given:
    """The model with the names in its pickle. Code from the notebook needs cloudpickle."""
    contents, own_code = _contents(model)
    return Given(
        model=model,
        name=f"a {type(model).__name__} in memory",
        file_format="cloudpickle" if own_code else "joblib",
        contents=contents,
        packages=packages,
        with_cloudpickle=own_code,
    )


def _contents(model: Any) -> tuple[PickleContents | None, bool]:
    import joblib

    buffer = io.BytesIO()
    try:
        joblib.dump(model, buffer)
        contents = look(buffer.getvalue())
        if not contents.of_main:
            return contents, False
    except (pickle.PicklingError, AttributeError, TypeError):
        pass
    import cloudpickle

    try:
        return look(cloudpickle.dumps(model)), True
    except Exception as error:  # objects that cannot be pickled raise many types of errors
        raise UsageError(
            f"the {type(model).__name__} cannot be saved ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        ) from None


def _frame(sample: Any, target: Any) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """The sample as a frame with the labels, and the names of the columns with labels."""
    frame = _table(sample).reset_index(drop=True)
    if isinstance(frame.columns, pd.MultiIndex):
        raise UsageError("the sample has columns of several levels: give one name to each column")
    if target is None or isinstance(target, str):
        return frame, () if target is None else (target,)
    if isinstance(target, list | tuple) and target and all(isinstance(name, str) and name in frame.columns for name in target):
        return frame, tuple(target)
    labels = target if isinstance(target, pd.DataFrame) else np.asarray(target)
    if labels.ndim > 2:
        raise UsageError(f"the target has {labels.ndim} dimensions: give one column, or one column for each target")
    if len(labels) != len(frame):
        raise UsageError(f"the target has {len(labels)} values, but the sample has {len(frame)} rows: give one value for each row")
    columns = np.asarray(labels).reshape(len(frame), -1).T
    names = (
        [str(getattr(target, "name", None) or LABELS)] if len(columns) == 1 else [f"{LABELS}_{at}" for at in range(len(columns))]
    )
    if isinstance(target, pd.DataFrame):
        names = [str(name) for name in target.columns]
    for name in names:
        if name in frame.columns:
            raise UsageError(f"the sample has a column '{name}', the name of the target: drop the column, or set target='{name}'")
    return frame.assign(**{name: np.asarray(values) for name, values in zip(names, columns, strict=True)}), tuple(names)


def _table(sample: Any) -> pd.DataFrame:
    if hasattr(sample, "toarray"):
        raise UsageError("the sample is a sparse matrix, but requests are rows with named columns: give a DataFrame")
    if isinstance(sample, pd.DataFrame):
        return sample
    if hasattr(sample, "to_pandas"):
        frame: pd.DataFrame = sample.to_pandas()
        return frame
    if isinstance(sample, list) and sample and isinstance(sample[0], dict):
        return pd.DataFrame(sample)
    array = np.asarray(sample)
    if array.ndim != 2:
        raise UsageError(f"the sample has {array.ndim} dimensions instead of 2: give a DataFrame or an array of rows and columns")
    return pd.DataFrame(array, columns=[f"x{at}" for at in range(array.shape[1])])


def _gate(values: Mapping[str, Any]) -> TrainOptions:
    """The options of the gate from keywords; tags and floors may be dictionaries."""
    unknown = sorted(set(values) - set(GATE))
    if unknown:
        raise UsageError(f"publish has no argument '{unknown[0]}'; the other arguments are: {', '.join(GATE)}")
    options: dict[str, Any] = {field: os.environ[name] for field, name in _ENVIRONMENT.items() if os.environ.get(name)} | dict(
        values
    )
    for field in ("model_dir", "signing_key", "verify_key", "report", "scratch_dir"):
        if options.get(field) is not None:
            options[field] = Path(options[field])
    if isinstance(options.get("tag"), Mapping):
        options["tag"] = [Tag(str(key), str(value)) for key, value in options["tag"].items()]
    if isinstance(options.get("floor"), Mapping):
        options["floor"] = [Floor(str(metric), float(value)) for metric, value in options["floor"].items()]
    return TrainOptions(**options)
