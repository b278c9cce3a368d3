"""A CSV cell as the value in a request."""

from __future__ import annotations

from collections.abc import Container

from serve_app.artifacts.signature import Feature
from serve_app.tables.csv_format import FALSE, TRUE
from serve_app.tables.numerals import numeral, plain_number

_TRUTHS = {**dict.fromkeys(TRUE, True), **dict.fromkeys(FALSE, False)}


def cell_value(feature: Feature, text: str, gaps: Container[str], decimal: str) -> str | float | bool | None:
    """A CSV cell as the value in a request; numbers may have the forms `.5`, `5.` and `+5`, too."""
    if text in gaps:
        return None
    if feature.kind == "boolean":
        return _TRUTHS.get(text, text)
    if feature.kind != "number":
        return text
    if feature.unit is not None:
        value = numeral(text, decimal)
        return text if value is None or value.sign not in ("", feature.unit) else value.value
    number = plain_number(text.rstrip(" "), decimal)
    return text if number is None else number
