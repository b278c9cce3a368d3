"""The HTML of the console. The template engine is imported by the first page that is asked for, not by a replica that starts."""

from __future__ import annotations

from functools import cache
from typing import Any

from serve_app.http.console import charts
from serve_app.printable import printable

NOTHING = "\N{EN DASH}"
"""What stands in the place of a value that is not known."""
STATIC = "ui/static"
"""Where styles and scripts are, relative to the page."""


def render(template: str, **values: Any) -> str:
    """One template as text; everything in `values` is escaped."""
    text: str = _environment().get_template(template).render(values)
    return text


@cache
def _environment() -> Any:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("serve_app.http.console", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_visible,
    )
    environment.globals.update(charts=charts, static=STATIC, printable=printable)
    environment.filters.update(number=_number, moment=_moment, milliseconds=_milliseconds, count=_count)
    return environment


def _visible(value: Any) -> Any:
    """Names may hold what turns the direction of a line; on the page it is seen and turns nothing."""
    return type(value)(printable(value)) if isinstance(value, str) and not hasattr(value, "__html__") else value


def _number(value: Any) -> str:
    return NOTHING if value is None else f"{value:.4g}"


def _count(value: float) -> str:
    return f"{round(value):,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def _milliseconds(value: float | None) -> str:
    return NOTHING if value is None else f"{1000 * value:.3g} ms"


def _moment(text: str | None) -> str:
    """A date in ISO 8601 with the precision that a person reads; all are in UTC."""
    return NOTHING if not text else text.replace("T", " ")[:16] + " UTC"
