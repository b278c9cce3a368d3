"""The report on a model before its publication, as lines of text and as a notebook cell."""

from __future__ import annotations

import html
from collections.abc import Iterator
from dataclasses import dataclass

from serve_app.artifacts.dates import write
from serve_app.artifacts.signature import Feature, label_text
from serve_app.printable import printable
from training import fit
from training.adoption import Adoption, class_path
from training.derived_signature import Column
from training.publication import libraries
from training.unlabelled import UNLABELLED

MAX_COLUMNS = 40
"""Most columns that are printed."""

_SHOWN = 6
"""Most categories and classes that are shown."""


@dataclass(frozen=True, slots=True)
class AdoptReport:
    """The sections of the report: each has a title and lines with a name and a text."""

    sections: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]

    @property
    def lines(self) -> list[str]:
        """Return the report as text, one line for each entry."""
        lines = []
        for title, entries in self.sections:
            width = min(max((len(name) for name, _ in entries), default=0), 28)
            lines += [title, *(f"  {name:{width}}  {text}" for name, text in entries)]
        return [printable(line) for line in lines]

    def __str__(self) -> str:
        return "\n".join(self.lines)

    def _repr_html_(self) -> str:
        """Return the report as HTML for a notebook cell."""
        rows = []
        for title, entries in self.sections:
            rows.append(f'<tr><th colspan="2" style="text-align:left">{html.escape(printable(title))}</th></tr>')
            rows += [
                f'<tr><td style="text-align:left">{html.escape(printable(name))}</td>'
                f'<td style="text-align:left">{html.escape(printable(text))}</td></tr>'
                for name, text in entries
            ]
        return f"<table>{''.join(rows)}</table>"


def report(adoption: Adoption, executed: str) -> AdoptReport:
    """The report of an adoption; `executed` names the code that ran when the model was loaded."""
    return AdoptReport(
        (
            ("model", tuple(_model(adoption, executed))),
            (f"columns ({len(adoption.derived.columns)})", tuple(_columns(adoption))),
            ("answers", tuple(_answers(adoption))),
            ("serving", tuple(_serving(adoption))),
            ("libraries", tuple(_libraries(adoption))),
            *((("remarks", tuple(("-", remark) for remark in missing)),) if (missing := list(_missing(adoption))) else ()),
        )
    )


def _model(adoption: Adoption, executed: str) -> Iterator[tuple[str, str]]:
    given = adoption.given
    final = fit.model_type(adoption.candidate.model)
    steps = class_path(given.model)
    yield "is", f"{steps}" + (f", ends in {final}" if not steps.endswith(f".{final}") else "")
    yield "from", given.name + (f", sha256 {given.sha256[:12]}" if given.sha256 else "")
    yield "loading ran", executed


def _columns(adoption: Adoption) -> Iterator[tuple[str, str]]:
    columns = adoption.derived.columns
    for column in columns[:MAX_COLUMNS]:
        yield column.feature.name, _column(column)
    if len(columns) > MAX_COLUMNS:
        yield "…", f"and {len(columns) - MAX_COLUMNS} more"
    if adoption.derived.unused:
        yield "not read", f"{_listed(adoption.derived.unused)}: requests can omit them"


def _column(column: Column) -> str:
    feature = column.feature
    parts = [f"{feature.kind} ({column.kind_source})"]
    parts.append(f"takes null ({column.null_source})" if feature.nullable else "no null")
    values = _values(feature)
    if values:
        parts.append(values)
    if column.unknown is not None:
        parts.append(
            "an unknown category is answered" if column.unknown == "answered" else "the model raises for an unknown category"
        )
    return ", ".join(parts)


def _values(feature: Feature) -> str:
    if feature.kind == "category":
        return f"{len(feature.categories)} categories: {_listed(feature.categories)}"
    if feature.low is None or feature.high is None:
        return ""
    if feature.date is not None:
        return f"{write(feature.low, feature.date)} to {write(feature.high, feature.date)} in the sample"
    return f"{feature.low:g} to {feature.high:g} in the sample"


def _listed(texts: tuple[str, ...]) -> str:
    return ", ".join(texts[:_SHOWN]) + (f" and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else "")


def _answers(adoption: Adoption) -> Iterator[tuple[str, str]]:
    signature = adoption.signature
    yield "task", signature.task
    for output in signature.outputs:
        yield output.name, _listed(tuple(map(label_text, output.classes))) if output.classes else "a number"
    if signature.task == "classification" and not signature.outputs:
        yield "classes", _listed(signature.class_names)
        if signature.threshold is not None:
            positive = label_text(signature.classes[signature.positive_position])
            yield "label", f"{positive} if its probability is at least {signature.threshold:g}"
        elif signature.probabilistic:
            yield "label", "the class of the highest probability, like predict for every row of the sample"
        else:
            yield "label", "the label of predict, without probabilities"
    compared = adoption.proof
    yield "equal", f"largest difference from the given model {compared.largest_difference:.2g} over {compared.rows} rows"
    if adoption.is_labelled:
        numbers = ", ".join(f"{name} {value:.4f}" for name, value in adoption.candidate.metrics.scalars().items())
        seen = "which are new to the model" if adoption.sample.held_out else "which the model may have learnt from (see --held-out)"
        yield "metrics", f"{numbers} on {adoption.candidate.metrics.rows} rows, {seen}"
    else:
        shares = ", ".join(f"{name} {value:.4f}" for name, value in adoption.candidate.metrics.scalars().items())
        why = "the task has no labels" if signature.task in UNLABELLED else "the sample has no labels (--target)"
        yield "metrics", f"{shares or 'none'}: {why}, so the gate makes technical checks only"


def _serving(adoption: Adoption) -> Iterator[tuple[str, str]]:
    facts = adoption.converted.facts
    if adoption.converted.model is not None:
        yield (
            "computes",
            f"ONNX Runtime, proven equal: largest difference {facts.largest_difference:.2g} over {facts.rows_compared} rows",
        )
        yield "executes", "no code of the model: replicas open no pickle"
    elif (native := adoption.converted.native) is not None:
        yield "computes", f"{native.form.library} in its own format: largest difference {native.form.largest_difference or 0.0:.2g}"
        yield "executes", f"no code of the model: {native.form.file} holds data"
    else:
        where = "the coded rows, without pandas" if adoption.candidate.frame is None else "a table, in an image with pandas"
        yield "computes", f"scikit-learn on {where} ({(facts.reason or '')[:200]})"
        code = f", and the user's code in {', '.join(packages)}" if (packages := sorted(adoption.candidate.packages)) else ""
        own = ", with code of its own" if adoption.given.with_cloudpickle else ""
        yield "executes", f"model.joblib, a pickle{own}{code}: replicas need IRIS_ALLOW_JOBLIB=true"
    own, given = (f"{seconds * 1e6:.0f} µs" for seconds in (adoption.row_seconds, adoption.given_row_seconds))
    yield "one row", f"{own}; the given model takes {given} for a table of one row"
    code_size = sum(map(len, adoption.candidate.packages.values()))
    size = len(adoption.candidate.pickle) + len(adoption.converted.model or b"") + code_size
    yield "size", f"{size / 1e6:.2f} MB"


def _libraries(adoption: Adoption) -> Iterator[tuple[str, str]]:
    packages = adoption.record.packages
    for name, version in libraries(packages).to_dict().items():
        yield name, str(version)


def _missing(adoption: Adoption) -> Iterator[str]:
    yield from adoption.remarks
    if adoption.is_labelled and not adoption.sample.held_out:
        yield "without --held-out, which states that the sample is new to the model, the metrics may be too good"
    never = adoption.candidate.never_predicted
    for label, rows in never.items():
        yield f"class '{label}' is never predicted, although {rows} rows have it"
