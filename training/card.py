"""The model card: one page about the model, its origin and its quality."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from serve_app.artifacts.dates import write
from serve_app.artifacts.manifest import Manifest
from serve_app.artifacts.signature import Signature
from serve_app.printable import printable


def render(manifest: Manifest, metrics: Mapping[str, Any], plots: Mapping[str, bytes]) -> bytes:
    """The card as one self-contained HTML page in UTF-8; `plots` maps file names to PNG files, which become part of the page."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("training", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_visible,
    )
    images = {_title(name): "data:image/png;base64," + base64.b64encode(png).decode() for name, png in plots.items()}
    page = environment.get_template("card.html").render(
        meta=manifest.to_dict(), metrics=metrics, plots=images, dates=_date_ranges(manifest.signature)
    )
    return (page + "\n").encode()


def _date_ranges(signature: Signature | None) -> dict[str, str]:
    """The range of each feature of dates, as text."""
    return {
        feature.name: f"{write(feature.low, feature.date)} to {write(feature.high, feature.date)}"
        for feature in (signature.features if signature is not None else ())
        if feature.date is not None and feature.low is not None and feature.high is not None
    }


def _visible(value: Any) -> Any:
    """Text of a table with visible marks in place of characters that change the direction of writing."""
    return type(value)(printable(value)) if isinstance(value, str) else value


def _title(name: str) -> str:
    return name.removesuffix(".png").replace("_", " ").capitalize()
