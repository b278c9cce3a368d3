"""Training and adoption: from a table or a fitted model to a published version, or to the reasons against it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from training.notebook import Published


def publish(model: Any, sample: Any, target: Any = None, **options: Any) -> Published:
    """Publish a fitted model from a notebook or script, through the same gate as `iris-api adopt`.

    `model` is a fitted estimator or pipeline. `sample` is a DataFrame, or an array of shape (rows, columns), with rows like those
    of the fit. `target` is the name of the column with the labels, or the labels themselves, shape (rows,); without it, the gate
    makes only technical checks. `category`, `number`, `date` and `nullable` name columns. `held_out=True` states that the model has
    not learnt from the sample. `dry_run=True` stops after the report. Other keywords are the flags of `iris-api adopt`, for example
    `model_dir`, `no_tracking`, `tolerance`, `tag={"team": "churn"}`.

    Returns the report with the version. For a model that the gate refuses, `version` is None and `reasons` is not empty. Raises
    `serve_app.errors.UsageError` with one sentence when the model cannot be adopted; nothing is published then.
    """
    from training import notebook

    return notebook.publish(model, sample, target, **options)
