"""The store as a readable table; serve_app/artifacts/listing.py makes its rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

COLUMNS = ("served", "version", "digest", "predictor", "model", "metrics", "trained", "run")


def _cell(name: str, row: Mapping[str, Any]) -> str:
    value = row[name]
    if name == "served":
        return "*" if value else ""
    if name == "digest":
        return str(value)[:12]
    if name == "metrics":
        text = " ".join(f"{metric}={number:.4f}" for metric, number in value.items())
        return text + (" forced" if row["forced"] else "") + (" damaged" if row["damaged"] else "")
    return "-" if value is None else str(value)


def lines(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Lines with aligned columns, the header first."""
    cells = [COLUMNS, *[tuple(_cell(name, row) for name in COLUMNS) for row in rows]]
    widths = [max(len(line[at]) for line in cells) for at in range(len(COLUMNS))]
    for line in cells:
        yield "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
