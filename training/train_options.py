"""The options of `train`: name, type, default, flag and help of each."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import typer

from serve_app.artifacts.dates import EPOCHS
from serve_app.artifacts.names import REPORT
from serve_app.artifacts.signature import Kind, Task
from serve_app.artifacts.store import KEEP
from serve_app.command_line import (
    MODEL_DIR,
    REFUSED,
    SCRATCH_BYTES,
    AllowHttp,
    AllowJoblib,
    Decimal,
    Encoding,
    ModelDir,
    PredictorChoice,
    ScratchBytes,
    ScratchDir,
    Separator,
    VerifyKey,
)
from serve_app.errors import UsageError
from training.estimators import ESTIMATORS
from training.tracking_uri import DEFAULT_URI
from training.unsupervised import CLUSTERS, DEFAULT_ESTIMATORS, OUTLIER_SHARE, UNSUPERVISED

TrackingUri = Annotated[
    str | None,
    typer.Option(envvar="MLFLOW_TRACKING_URI", help=f"MLflow server, or a bucket for its files. (default: {DEFAULT_URI})"),
]
DEFAULT_MODEL_NAME = "IrisClassifier"
ModelName = Annotated[str, typer.Option(help="Name of the registered model.")]
DEFAULT_MODEL_ALIAS = "champion"
ModelAlias = Annotated[
    str, typer.Option(envvar="IRIS_MODEL_ALIAS", help="Alias or stage in MLflow that moves to the served version.")
]
TaskChoice = Literal["auto", "classification", "regression", "outlier-detection", "clustering"]
WITHOUT_TARGET: Mapping[str, Task] = {"outlier-detection": "outlier detection", "clustering": "clustering"}
"""The choices of `--task` that need no target."""
CalibrationMethod = Literal["sigmoid", "isotonic"]
_FOREST = ESTIMATORS["random-forest"].classification.defaults


class OptionalInt(NamedTuple):
    """A whole number, or None for the text `None`, to distinguish it from an omitted flag."""

    value: int | None

    def __str__(self) -> str:
        return str(self.value)


DEFAULT_SEED = OptionalInt(42)


class Floor(NamedTuple):
    """A metric and the value that a model must reach, or must not exceed for mae and rmse."""

    metric: str
    value: float


class ColumnBounds(NamedTuple):
    """The range of a numeric column, ends included; None leaves an end open."""

    column: str
    low: float | None
    high: float | None


class Epoch(NamedTuple):
    """A column of numbers that are dates, and their form in the signature."""

    column: str
    form: str


class DateFlag(NamedTuple):
    """A column of dates; `format` is a format of `strptime`, or empty when the table decides."""

    column: str
    format: str


class Tag(NamedTuple):
    """A tag of the run."""

    key: str
    value: str


class ThresholdRule(NamedTuple):
    """The decision between two classes: a stated threshold, or the costs of a false positive and a false negative."""

    positive: str | None
    threshold: float | None
    costs: tuple[float, float] | None


def parse_optional_int(text: str | OptionalInt) -> OptionalInt:
    """`12` or `None`; raises typer.BadParameter."""
    if isinstance(text, OptionalInt):  # typer also passes the default
        return text
    if text.strip().lower() == "none":
        return OptionalInt(None)
    with contextlib.suppress(ValueError):
        return OptionalInt(int(text))
    raise typer.BadParameter(f"'{text}' is neither a whole number nor None")


def parse_floor(text: str | Floor) -> Floor:
    """`accuracy=0.9`; raises typer.BadParameter."""
    if isinstance(text, Floor):
        return text
    metric, _, value = text.partition("=")
    with contextlib.suppress(ValueError):
        return Floor(metric.strip(), float(value))
    raise typer.BadParameter(f"'{text}' must look like accuracy=0.9")


def parse_bounds(text: str | ColumnBounds) -> ColumnBounds:
    """`age=0:120`, `age=0:` or `age=:120`; raises typer.BadParameter."""
    if isinstance(text, ColumnBounds):
        return text
    column, _, span = text.rpartition("=")
    start, separator, end = span.partition(":")
    with contextlib.suppress(ValueError):
        low, high = (float(start) if start else None, float(end) if end else None)
        if column and separator and (low is None or high is None or low <= high):
            return ColumnBounds(column, low, high)
    raise typer.BadParameter(f"'{text}' must look like age=0:120")


def parse_date(text: str | DateFlag) -> DateFlag:
    """`day` or `day=%d/%m/%Y`; raises typer.BadParameter."""
    if isinstance(text, DateFlag):
        return text
    column, separator, form = text.rpartition("=")
    if separator and "%" in form:
        return DateFlag(column, form)
    return DateFlag(text, "")


def parse_epoch(text: str | Epoch) -> Epoch:
    """`seen=s` or `seen=ms`; raises typer.BadParameter."""
    if isinstance(text, Epoch):
        return text
    column, _, unit = text.rpartition("=")
    if column and f"epoch {unit}" in EPOCHS:
        return Epoch(column, f"epoch {unit}")
    raise typer.BadParameter(f"'{text}' must look like seen=s (seconds since 1970) or seen=ms (milliseconds)")


def parse_tag(text: str | Tag) -> Tag:
    """`KEY=VALUE`, the form that the command makes from `--tag KEY VALUE`; raises typer.BadParameter."""
    if isinstance(text, Tag):
        return text
    key, separator, value = text.partition("=")
    if not key or not separator:
        raise typer.BadParameter(f"'{text}' needs a value: --tag {text or 'team'} VALUE")
    return Tag(key, value)


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """The options of one training. Raises UsageError when a value is out of its range."""

    data: Annotated[
        str | None,
        typer.Option(help="CSV or Parquet: a file, a folder, gs://…, s3://…, or https://…. (default: the iris flowers)"),
    ] = None
    target: Annotated[str | None, typer.Option(help="Column to predict, or several of one kind as A,B.")] = None
    task: Annotated[
        TaskChoice, typer.Option(help="Task; auto chooses classification or regression by the values of the target.")
    ] = "auto"
    drop: Annotated[list[str], typer.Option(metavar="COLUMN", help="Leave a column out; repeatable.")] = field(default_factory=list)
    drop_rows_without_target: Annotated[
        bool, typer.Option("--drop-rows-without-target", help="Leave out rows without a value of the target.")
    ] = False
    drop_rare_classes: Annotated[bool, typer.Option("--drop-rare-classes", help="Leave out classes with a single row.")] = False
    na: Annotated[
        list[str],
        typer.Option(
            metavar="TEXT",
            help="Text that means a missing value, like an empty cell; repeatable; '' means no text. (default: NA, None, …)",
        ),
    ] = field(default_factory=list)
    category: Annotated[list[str], typer.Option(metavar="COLUMN", help="Column of texts, even if it holds digits; repeatable.")] = (
        field(default_factory=list)
    )
    number: Annotated[
        list[str],
        typer.Option(metavar="COLUMN", help="Column of numbers, also with thousands separators, % or a currency sign; repeatable."),
    ] = field(default_factory=list)
    separator: Separator = None
    decimal: Decimal = None
    encoding: Encoding = None
    date: Annotated[
        list[DateFlag],
        typer.Option(
            metavar="COLUMN[=FORMAT]",
            parser=parse_date,
            help="Read a column as dates, with a format like %d/%m/%Y if the table is ambiguous; repeatable.",
        ),
    ] = field(default_factory=list)
    epoch: Annotated[
        list[Epoch],
        typer.Option(
            metavar="COLUMN=s|ms",
            parser=parse_epoch,
            help="Read a column of numbers as seconds or milliseconds since 1970-01-01; repeatable.",
        ),
    ] = field(default_factory=list)
    time_column: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Hold out the newest rows by this column of dates or numbers, not random rows."),
    ] = None
    group_column: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Hold out whole groups of rows with the same value; the column is not a feature."),
    ] = None
    bounds: Annotated[
        list[ColumnBounds],
        typer.Option(
            metavar="COLUMN=LOW:HIGH",
            parser=parse_bounds,
            help="Refuse requests with values outside; either end may be empty; repeatable.",
        ),
    ] = field(default_factory=list)
    estimator: Annotated[
        str,
        typer.Option(
            help=f"{', '.join(ESTIMATORS)} or package.module:factory; outliers: isolation-forest, one-class-svm; "
            "clusters: k-means, gaussian-mixture."
        ),
    ] = "random-forest"
    clusters: Annotated[int | None, typer.Option(metavar="N", min=1, help="Number of clusters of a clustering. (default: 8)")] = (
        None
    )
    outlier_share: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="Share of outliers in the training rows, like 0.05. (default: the estimator decides)"),
    ] = None
    n_estimators: Annotated[
        int | None, typer.Option(metavar="N", min=1, help=f"Number of trees. (default: {_FOREST['n_estimators']})")
    ] = None
    max_depth: Annotated[
        OptionalInt | None,
        typer.Option(
            metavar="N|None", parser=parse_optional_int, help=f"Depth of a tree; None: no limit. (default: {_FOREST['max_depth']})"
        ),
    ] = None
    test_size: Annotated[float, typer.Option(help="Share of the held-out rows.")] = 0.2
    random_state: Annotated[
        OptionalInt, typer.Option(metavar="N|None", parser=parse_optional_int, help="Seed; None: a new seed each time.")
    ] = DEFAULT_SEED
    search: Annotated[int, typer.Option(metavar="N", min=0, help="Compare N candidates by cross-validation, as Ray tasks.")] = 0
    floor: Annotated[
        list[Floor],
        typer.Option(
            metavar="METRIC=VALUE",
            parser=parse_floor,
            help="Refuse a model with a metric below (mae, rmse: above) this value; repeatable.",
        ),
    ] = field(default_factory=list)
    min_accuracy: Annotated[float | None, typer.Option(help="The same as --floor accuracy=VALUE.")] = None
    threshold: Annotated[
        float | None, typer.Option(help="For two classes: lowest probability that predicts the positive class. (default: 0.5)")
    ] = None
    cost_false_positive: Annotated[
        float | None, typer.Option(help="Cost of a false positive; training takes the threshold with the lowest cost.")
    ] = None
    cost_false_negative: Annotated[float | None, typer.Option(help="Cost of a false negative, a missed positive class.")] = None
    positive_class: Annotated[
        str | None, typer.Option(help="Positive class for the threshold and the costs. (default: the second class)")
    ] = None
    calibrate: Annotated[
        CalibrationMethod | None,
        typer.Option(help="Calibrate the probabilities in a cross-validation, so that about 80 in 100 rows with 0.8 are right."),
    ] = None
    coverage: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Answer with an interval or a set of classes that holds the true value in this share of rows, like 0.9.",
        ),
    ] = None
    allow_unpredicted_classes: Annotated[
        bool, typer.Option("--allow-unpredicted-classes", help="Accept a model that never predicts one of the classes.")
    ] = False
    tolerance: Annotated[
        float,
        typer.Option(min=0.0, help="Allowed loss against the served model: lost accuracy, or relative growth of rmse."),
    ] = 0.0
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Read the table, print the report on each column, and stop.")] = False
    importance_seconds: Annotated[
        float,
        typer.Option(
            min=0.0, help="Most seconds to measure the importance of columns; columns without a measurement stay unknown."
        ),
    ] = 10.0
    force: Annotated[bool, typer.Option("--force", help="Publish even a refused model; its manifest records that.")] = False
    same_columns: Annotated[
        bool, typer.Option("--same-columns", help="Stop if the columns or the target differ from those of the served model.")
    ] = False
    exit_refused: Annotated[int, typer.Option(min=0, max=125, help="Exit code for a refused model.")] = REFUSED
    report: Annotated[Path | None, typer.Option(help=f"File for the verdict. (default: {REPORT} in the store)")] = None
    keep: Annotated[int, typer.Option(min=1, help="Number of models that the store keeps.")] = KEEP
    signing_key: Annotated[
        Path | None, typer.Option(envvar="IRIS_SIGNING_KEY", help="Sign the bundle with this Ed25519 private key (PEM).")
    ] = None
    prefer: PredictorChoice = "auto"
    allow_joblib: AllowJoblib = True
    verify_key: VerifyKey = None
    no_tracking: Annotated[bool, typer.Option("--no-tracking", help="Publish without MLflow; the manifest records that.")] = False
    experiment_name: Annotated[str, typer.Option(help="MLflow experiment.")] = "iris-classification"
    run_name: Annotated[str | None, typer.Option(help="Name of the MLflow run.")] = None
    model_name: ModelName = DEFAULT_MODEL_NAME
    model_alias: ModelAlias = DEFAULT_MODEL_ALIAS
    tag: Annotated[list[Tag], typer.Option(metavar="KEY VALUE", parser=parse_tag, help="Tag of the run; repeatable.")] = field(
        default_factory=list
    )
    model_dir: ModelDir = MODEL_DIR
    tracking_uri: TrackingUri = None
    scratch_dir: ScratchDir = None
    scratch_bytes: ScratchBytes = SCRATCH_BYTES
    allow_http: AllowHttp = False

    def __post_init__(self) -> None:
        for column in self.category:
            if column in self.number:
                raise UsageError(f"'{column}' is named by --category and by --number: name one kind")
        seed = self.random_state.value
        if seed is not None and not 0 <= seed < 2**32:
            raise UsageError(f"--random-state {seed} must be between 0 and {2**32 - 1}, or None")
        if not 0.0 < self.test_size < 1.0:
            raise UsageError(f"--test-size {self.test_size:g} must be a share between 0 and 1, like 0.2")
        if self.max_depth is not None and self.max_depth.value is not None and self.max_depth.value < 1:
            raise UsageError(f"--max-depth {self.max_depth} must be at least 1, or None for no limit")
        if self.estimator in ESTIMATORS:
            ESTIMATORS[self.estimator].check_installed()
        if self.model_dir.exists() and not self.model_dir.is_dir():
            raise UsageError(f"--model-dir {self.model_dir} is a file: give a folder")
        if self.coverage is not None and not 0.0 < self.coverage < 1.0:
            raise UsageError(f"--coverage {self.coverage:g} must be a share between 0 and 1, like 0.9")
        self._check_columns()
        self._check_threshold()
        self._check_unsupervised()

    def _check_columns(self) -> None:
        if self.time_column is not None and self.group_column is not None:
            raise UsageError("--time-column and --group-column cannot be used together: choose one")
        for column in self.category:
            if column in self.number:
                raise UsageError(f"'{column}' is named by --category and by --number: name one kind")

    def _check_threshold(self) -> None:
        costs = (self.cost_false_positive, self.cost_false_negative)
        stated = [cost for cost in costs if cost is not None]
        if self.threshold is not None and stated:
            raise UsageError("--threshold and the costs exclude each other: use one of them")
        if self.threshold is not None and not 0.0 < self.threshold <= 1.0:
            raise UsageError(f"--threshold {self.threshold:g} must be a probability above 0 and at most 1, like 0.3")
        if len(stated) == 1:
            raise UsageError("--cost-false-positive and --cost-false-negative need each other: set both")
        if not all(0.0 < cost < math.inf for cost in stated):
            raise UsageError("--cost-false-positive and --cost-false-negative must be numbers above 0")
        if self.positive_class is not None and self.threshold_rule is None:
            raise UsageError("--positive-class needs --threshold, or --cost-false-positive and --cost-false-negative")

    def _check_unsupervised(self) -> None:
        """Check the flags of tasks without a target, and the flags that need a target."""
        task, table = WITHOUT_TARGET.get(self.task), UNSUPERVISED
        if task is None:
            if self.estimator in table:
                raise UsageError(f"--estimator {self.estimator} learns without a target: use --task {table[self.estimator].choice}")
            if self.clusters is not None or self.outlier_share is not None:
                raise UsageError("--clusters needs --task clustering, and --outlier-share needs --task outlier-detection")
            return
        if self.estimator == "random-forest":  # the default estimator, which needs a target
            object.__setattr__(self, "estimator", DEFAULT_ESTIMATORS[task])
        elif self.estimator in ESTIMATORS or (self.estimator in table and table[self.estimator].task != task):
            names = [name for name, known in table.items() if known.task == task]
            raise UsageError(f"--task {self.task} has no estimator {self.estimator}: use {' or '.join(names)}")
        flags = {
            "--target": self.target is not None,
            "--coverage": self.coverage is not None,
            "--calibrate": self.calibrate is not None,
            "--threshold": self.threshold_rule is not None,
            "--search": bool(self.search),
        }
        needless = [flag for flag, is_set in flags.items() if is_set]
        if needless:
            raise UsageError(f"--task {self.task} has no target, but {' and '.join(needless)} need one: omit the flag")
        if self.data is None:
            raise UsageError(f"--task {self.task} needs --data, a table of rows without a target")
        self._check_shares()

    def _check_shares(self) -> None:
        """Check the flags of the estimators that learn without a target."""
        if self.clusters is not None and self.estimator not in CLUSTERS:
            raise UsageError(f"{self.estimator} has no number of clusters: omit --clusters")
        if self.outlier_share is not None and self.estimator not in OUTLIER_SHARE:
            raise UsageError(f"{self.estimator} has no share of outliers: omit --outlier-share")
        if self.outlier_share is not None and not 0.0 < self.outlier_share <= 0.5:
            raise UsageError(f"--outlier-share {self.outlier_share:g} must be a share above 0 and at most 0.5, like 0.05")

    @property
    def threshold_rule(self) -> ThresholdRule | None:
        """The rule for the class; None for the class of the highest probability."""
        if self.threshold is not None:
            return ThresholdRule(self.positive_class, self.threshold, None)
        if self.cost_false_positive is not None and self.cost_false_negative is not None:
            return ThresholdRule(self.positive_class, None, (self.cost_false_positive, self.cost_false_negative))
        return None

    @property
    def kinds(self) -> Mapping[str, Kind]:
        """The kind from a flag, by column."""
        return {**dict.fromkeys(self.category, "category"), **dict.fromkeys(self.number, "number")}

    @property
    def params(self) -> Mapping[str, Any]:
        """The estimator's parameters from flags."""
        params: dict[str, Any] = {}
        if self.n_estimators is not None:
            params["n_estimators"] = self.n_estimators
        if self.max_depth is not None:
            params["max_depth"] = self.max_depth.value
        if self.clusters is not None:
            params[CLUSTERS[self.estimator]] = self.clusters
        if self.outlier_share is not None:
            params[OUTLIER_SHARE[self.estimator]] = self.outlier_share
        return params

    @property
    def dates(self) -> Mapping[str, tuple[str, ...]]:
        """The formats of each column that is declared as dates; empty when the table decides the format."""
        forms: dict[str, tuple[str, ...]] = {}
        for column, form in (*self.date, *self.epoch):
            forms[column] = (*forms.get(column, ()), *([form] if form else []))
        return forms

    @property
    def floors(self) -> Mapping[str, float]:
        """The value that a model must reach, by metric; `--min-accuracy` takes precedence over `--floor accuracy=...`."""
        floors = {floor.metric: floor.value for floor in self.floor}
        return floors if self.min_accuracy is None else {**floors, "accuracy": self.min_accuracy}

    @property
    def tags(self) -> Mapping[str, str]:
        """The tags of the run by key; the last of two tags with one key counts."""
        return {tag.key: tag.value for tag in self.tag}

    @property
    def column_bounds(self) -> Mapping[str, tuple[float | None, float | None]]:
        """The lowest and the highest allowed value in requests, by column."""
        return {bound.column: (bound.low, bound.high) for bound in self.bounds}
