"""Points of the protocol: what is checked, whether every server must keep it, and what came of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

MAX_REASON = 70
"""Characters of a reason in a table."""

Outcome = Literal["pass", "fail", "skip"]
Check = TypeVar("Check", bound=Callable[[Any], None])


class Broken(AssertionError):
    """The server does not keep a point; the text says what it did."""


class Inapplicable(Exception):
    """The point does not apply to this server; the text says why."""


@dataclass(frozen=True)
class Point:
    """One point: where it is checked, its sentence, and the extension that it belongs to.

    A required point follows from the text of the protocol. An optional one is what its usual clients rely on, or an extension.
    """

    area: str
    sentence: str
    check: Callable[[Any], None]
    required: bool
    extension: str

    @property
    def kind(self) -> str:
        """`required`, `optional`, or the name of the extension."""
        return "required" if self.required else self.extension or "optional"


@dataclass(frozen=True)
class Result:
    """What came of a point, with the reason when it is not kept or does not apply."""

    point: Point
    outcome: Outcome
    reason: str = ""


class AddPoint(Protocol):
    """The decorator of `registry`."""

    def __call__(self, area: str, sentence: str, *, required: bool = True, extension: str = "") -> Callable[[Check], Check]:
        """A function that adds a check, and returns it."""


def registry() -> tuple[list[Point], AddPoint]:
    """A list of points, and the decorator that adds a function to it: `@point("metadata", "…", required=False)`."""
    points: list[Point] = []

    def point(area: str, sentence: str, *, required: bool = True, extension: str = "") -> Callable[[Check], Check]:
        def add(check: Check) -> Check:
            points.append(Point(area, sentence, check, required and not extension, extension))
            return check

        return add

    return points, point


def expect(condition: Any, reason: str) -> None:
    """Raise Broken with this reason unless the condition holds."""
    if not condition:
        raise Broken(reason)


def run(points: list[Point], subject: Any) -> list[Result]:
    """Check all points, each by itself: an error of any kind is a point that is not kept."""
    results = []
    for point in points:
        try:
            point.check(subject)
        except Inapplicable as error:
            results.append(Result(point, "skip", str(error)))
        except Broken as error:
            results.append(Result(point, "fail", str(error)))
        except Exception as error:
            results.append(Result(point, "fail", _sentence(error)))
        else:
            results.append(Result(point, "pass"))
    return results


def _sentence(error: Any) -> str:
    """An error as text; of one of gRPC its status and details."""
    if hasattr(error, "details") and hasattr(error, "code"):
        return f"{error.code().name}: {error.details()}"
    return f"{type(error).__name__}: {error}"


def as_documents(results: Sequence[Result]) -> list[dict[str, str]]:
    """Results for JSON: point, kind, outcome, reason."""
    return [
        {
            "point": f"{each.point.area}: {each.point.sentence}",
            "kind": each.point.kind,
            "outcome": each.outcome,
            "reason": each.reason,
        }
        for each in results
    ]


def as_table(columns: Mapping[str, Sequence[Mapping[str, str]]]) -> str:
    """A table in Markdown of results as documents: a row for each point, a column for each name with what came of it.

    A point that a column lacks was not checked there.
    """
    lines = [f"| point | kind | {' | '.join(columns)} |", f"| --- | --- |{' --- |' * len(columns)}"]
    found = {name: {each["point"]: each for each in documents} for name, documents in columns.items()}
    points = {each["point"]: each["kind"] for documents in columns.values() for each in documents}
    for point, kind in points.items():
        cells = [_cell(documents.get(point)) for documents in found.values()]
        lines.append(f"| {point} | {kind} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(result: Mapping[str, str] | None) -> str:
    if result is None:
        return ""
    line = " ".join(result["reason"].split()).replace("|", "/")
    line = line if len(line) <= MAX_REASON else re.sub(r"\w+$", "", line[:MAX_REASON]) + "…"  # whole words
    return {"pass": "kept", "skip": f"({line})"}.get(result["outcome"], f"**no**: {line}")
