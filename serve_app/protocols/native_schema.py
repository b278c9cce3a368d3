"""JSON Schema of the bodies of the native protocol, for the signature of the served model.

The schema is public by default. It contains what a client needs to send a request: names, kinds, bounds, categories and classes. It
contains nothing else from the training rows, such as their ranges or values.
"""

from __future__ import annotations

from typing import Any

from serve_app.artifacts.dates import DateForm, as_sent
from serve_app.artifacts.decision import single_value
from serve_app.artifacts.fields import UnknownFields
from serve_app.artifacts.signature import EXAMPLE_TEXT, Feature, Label, Signature, json_label, label_text


def row(signature: Signature | None, unknown_fields: UnknownFields = "ignore") -> dict[str, Any]:
    """The object of one row; any object without a signature."""
    further = {"ignore": "ignored", "refuse": "refused"}[unknown_fields]
    schema: dict[str, Any] = {"type": "object", "description": f"Features of one row; further fields are {further}."}
    if signature is not None:
        if unknown_fields == "refuse":
            schema["additionalProperties"] = False
        if all(feature.nullable for feature in signature.features):
            schema["minProperties"] = 1
            schema["description"] += " At least one feature is required."
        schema["properties"] = {feature.name: _feature(feature) for feature in signature.features}
        schema["required"] = [feature.name for feature in signature.features if not feature.nullable]
        schema["example"] = example(signature)
    return schema


def rows(signature: Signature | None, unknown_fields: UnknownFields = "ignore", *, max_rows: int) -> dict[str, Any]:
    """`{"instances": [row, …]}` with at most `max_rows` rows."""
    instances = {"type": "array", "minItems": 1, "maxItems": max_rows, "items": {"$ref": "#/components/schemas/Row"}}
    schema: dict[str, Any] = {"type": "object", "required": ["instances"], "properties": {"instances": instances}}
    if unknown_fields == "refuse":
        schema["additionalProperties"] = False
    if signature is not None:
        schema["example"] = {"instances": [example(signature)]}
    return schema


def prediction(signature: Signature | None) -> dict[str, Any]:
    """The prediction of one row."""
    if signature is None:
        return {"type": "object"}
    if signature.outputs:
        return _object({"outputs": _object({part.target: prediction(part) for _, part in signature.parts})})
    if signature.task == "outlier detection":
        score = {"type": "number", "description": "Below 0 for an outlier; a lower score means a more unusual row."}
        return _object({"outlier": {"type": "boolean"}, "score": score})
    if signature.task == "clustering":
        return _cluster(signature)
    return _number(signature) if signature.task == "regression" else _class(signature)


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "required": list(properties), "properties": properties}


def _number(signature: Signature) -> dict[str, Any]:
    number = {"type": "number"}
    properties: dict[str, Any] = {"prediction": number} if single_value(signature) is not None else {}
    if signature.quantiles:
        properties["quantiles"] = _object({label_text(level): number for level in signature.quantiles})
    if signature.coverage is not None:
        description = f"Contains the true value for a share of {signature.coverage.level:g} of the rows."
        properties["interval"] = {"type": "array", "items": number, "minItems": 2, "maxItems": 2, "description": description}
    return _object(properties)


def _class(signature: Signature) -> dict[str, Any]:
    label = {"enum": [json_label(label) for label in signature.classes]}
    null = {"type": "null"}
    properties: dict[str, Any] = {
        "prediction": label,
        "confidence": _PROBABILITY if signature.probabilistic else null,
        "probabilities": _probabilities(signature) if signature.probabilistic else null,
    }
    if signature.coverage is not None:
        description = f"Contains the true class for a share of {signature.coverage.level:g} of the rows."
        properties["prediction_set"] = {
            "type": "array",
            "items": label,
            "minItems": 1,
            "uniqueItems": True,
            "description": description,
        }
    return _object(properties)


def _cluster(signature: Signature) -> dict[str, Any]:
    properties: dict[str, Any] = {"cluster": {"enum": list(signature.classes)}}
    if signature.probabilistic:
        properties["probabilities"] = _probabilities(signature)
    elif signature.distance:
        properties["distance"] = {"type": "number", "minimum": 0, "description": "Distance to the nearest cluster centre."}
    return _object(properties)


_PROBABILITY = {"type": "number", "minimum": 0, "maximum": 1}


def _probabilities(signature: Signature) -> dict[str, Any]:
    return _object(dict.fromkeys(signature.class_names, _PROBABILITY))


def predictions() -> dict[str, Any]:
    """`{"predictions": [prediction, …]}`."""
    return {
        "type": "object",
        "required": ["predictions"],
        "properties": {"predictions": {"type": "array", "items": {"$ref": "#/components/schemas/Prediction"}}},
    }


def prediction_columns(signature: Signature | None) -> dict[str, Any]:
    """`{"predictions": {member: [value of each row, …], …}}`."""
    return _object({"predictions": _as_columns(prediction(signature))})


def _as_columns(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema for all rows: objects and null stay, and every other value becomes a list with one value for each row."""
    if schema.get("type") == "object":
        if "properties" not in schema:
            return schema
        return {**schema, "properties": {name: _as_columns(each) for name, each in schema["properties"].items()}}
    return schema if schema.get("type") == "null" else {"type": "array", "items": schema}


def example(signature: Signature) -> dict[str, Label]:
    """A row that is valid in a request; it depends only on kinds, bounds and categories."""
    return {feature.name: _example(feature) for feature in signature.features}


def _example(feature: Feature) -> Label:
    if feature.kind == "category":
        return feature.categories[0] if feature.categories else ""
    if feature.kind == "boolean":
        return True
    if feature.kind == "text":
        return EXAMPLE_TEXT[: feature.longest]
    if feature.date is not None:
        return _example_date(feature.date)
    least, most = feature.bounds
    if feature.minimum is None or feature.maximum is None:
        return min(max(1.0, least), most)
    middle = least / 2 + most / 2
    rounded = round(middle, 6)
    return rounded if least <= rounded <= most else min(max(middle, least), most)


def _example_date(form: DateForm) -> Label:
    return as_sent(0.5 if form.is_time else 10_957.0, form)


def _date_description(form: DateForm) -> str:
    return f"The value {form.rule}. The model computes from it: {', '.join(form.parts)}."


def _feature(feature: Feature) -> dict[str, Any]:
    if feature.kind == "category":
        schema: dict[str, Any] = {"type": "string", "enum": list(feature.categories)}
    elif feature.kind == "boolean":
        schema = {"type": "boolean"}
    elif feature.kind == "text":
        schema = {"type": "string", "maxLength": feature.longest}
    elif feature.date is not None:
        schema = {"type": "string" if feature.date.epoch is None else "number", "description": _date_description(feature.date)}
    else:
        schema = {"type": "number"}
        if feature.minimum is not None:
            schema["minimum"] = feature.minimum
        if feature.maximum is not None:
            schema["maximum"] = feature.maximum
    if feature.nullable:
        schema["type"] = [schema["type"], "null"]
        if "enum" in schema:
            schema["enum"] = [*schema["enum"], None]
    return schema
