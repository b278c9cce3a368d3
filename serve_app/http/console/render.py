"""The HTML of the console. The first request for a page imports the template engine, so a replica starts without it."""

from __future__ import annotations

from functools import cache
from typing import Any

from serve_app.http.console import charts
from serve_app.printable import printable

NOTHING = "\N{EN DASH}"
"""The text for an unknown value."""
STATIC = "ui/static"
"""The path of styles and scripts, relative to the page."""


def render(template: str, **values: Any) -> str:
    """Render one template; Jinja2 escapes everything in `values`."""
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
    """Show the characters in a name that would change the direction of the text, in a visible form without effect."""
    return type(value)(printable(value)) if isinstance(value, str) and not hasattr(value, "__html__") else value


def _number(value: Any) -> str:
    return NOTHING if value is None else f"{value:.4g}"


def _count(value: float) -> str:
    return f"{round(value):,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def _milliseconds(value: float | None) -> str:
    return NOTHING if value is None else f"{1000 * value:.3g} ms"


def _moment(text: str | None) -> str:
    """Format a date in ISO 8601 for a reader, in UTC and to the minute."""
    return NOTHING if not text else text.replace("T", " ")[:16] + " UTC"
