"""The form for one prediction, made from the signature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import orjson

from serve_app.artifacts.signature import Feature, Signature

MAX_FIELDS = 100
"""Most fields of a form. The user of a wider model writes the row as JSON."""
MAX_CHOICES = 500
"""Most categories in a list. For more categories, the user types the text."""

Control = Literal["number", "choice", "text", "line"]


@dataclass(frozen=True, slots=True)
class Choice:
    """One entry of a list: its value as JSON, and its text."""

    json: str
    text: str


@dataclass(frozen=True, slots=True)
class Field:
    """One control of the form; `value` is a text, or for a list the JSON of the selected entry."""

    name: str
    control: Control
    value: str
    hint: str
    nullable: bool
    minimum: float | None = None
    maximum: float | None = None
    max_length: int | None = None
    choices: tuple[Choice, ...] = ()


def fields(signature: Signature) -> list[Field] | None:
    """Return one field for each feature, filled with a valid row; None for a model with too many features."""
    if len(signature.features) > MAX_FIELDS:
        return None
    example = signature.example()
    return [_field(feature, example[feature.name]) for feature in signature.features]


def example_json(signature: Signature) -> str:
    """A valid row as JSON."""
    return orjson.dumps(signature.example(), option=orjson.OPT_INDENT_2).decode()


def _field(feature: Feature, example: Any) -> Field:
    text = "" if example is None else str(example)
    hint = _hint(feature)
    if feature.kind == "boolean":
        choices = [Choice("true", "true"), Choice("false", "false")]
        return _choice(feature, choices, example, hint)
    if feature.kind == "category" and len(feature.categories) <= MAX_CHOICES:
        return _choice(feature, [Choice(_json(name), name) for name in feature.categories], example, hint)
    if feature.kind == "text":
        return Field(feature.name, "text", text, hint, feature.nullable, max_length=feature.longest)
    if feature.kind == "category" or (feature.date is not None and feature.date.epoch is None):
        return Field(feature.name, "line", text, hint, feature.nullable)
    return Field(feature.name, "number", text, hint, feature.nullable, feature.minimum, feature.maximum)


def _choice(feature: Feature, choices: list[Choice], example: Any, hint: str) -> Field:
    if feature.nullable:
        choices = [Choice("null", "(missing)"), *choices]
    return Field(feature.name, "choice", _json(example), hint, feature.nullable, choices=tuple(choices))


def _hint(feature: Feature) -> str:
    parts = []
    if feature.date is not None:
        parts.append(f"the value {feature.date.rule}")
    elif feature.kind == "number":
        least = "any" if feature.minimum is None else f"{feature.minimum:g}"
        most = "any" if feature.maximum is None else f"{feature.maximum:g}"
        if (feature.minimum, feature.maximum) != (None, None):
            parts.append(f"allowed: {least} to {most}")
        if feature.low is not None and feature.high is not None:
            parts.append(f"training: {feature.low:g} to {feature.high:g}")
    elif feature.kind == "text":
        parts.append(f"at most {feature.longest} characters")
    if feature.nullable:
        parts.append("may be missing")
    return "; ".join(parts)


def _json(value: Any) -> str:
    return orjson.dumps(value).decode()
