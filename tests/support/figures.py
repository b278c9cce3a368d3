"""The figures that tests measure: recorded while they run, then written into docs/explanation/.

    python -m tests.support.figures     after `make test test-hostile test-timing test-integration test-faults`

`records.json` gets what the tests of each promise recorded. The tables of promises get one number from it. A test that has not run
since then keeps its record. The record and the row of a test that failed say so.
"""

from __future__ import annotations

import json
import os
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TypedDict

from tests.support.promises import PAGES, Groups, Number

ROOT = Path(__file__).parents[2]
FILE = ROOT / "build" / "figures.jsonl"
RECORDS = ROOT / "docs" / "explanation" / "records.json"
NONE = "not measured yet"
BEGIN, END = "<!-- figures -->\n", "<!-- end of figures -->"


class Record(TypedDict):
    """What the last run of the tests of a promise left."""

    date: str
    tests: int
    failed: list[str]
    figures: list[str]


Records = dict[str, Record]
"""By the selector of the test: a part of its file, `::`, a part of its name."""


def note(text: str) -> None:
    """Record a figure of the running test."""
    print(text)
    keep(os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0], figure=text)


def keep(test: str, **what: str) -> None:
    """Append a line about a test: its `figure`, or its `outcome`."""
    FILE.parent.mkdir(exist_ok=True)
    line = {"test": test, "at": datetime.now(UTC).isoformat(timespec="seconds"), **what}
    with FILE.open("a") as file:
        file.write(json.dumps(line) + "\n")


def is_promised(test: str) -> bool:
    """Whether a row of the tables names this test."""
    return any(is_of(test, promise.test) for groups in PAGES.values() for _, promises in groups for promise in promises)


def is_of(test: str, selector: str) -> bool:
    """Whether `tests/faults/test_x.py::test_a[b]` matches the selector of a row: a part of its path, `::`, a part of its name."""
    where, _, name = selector.partition("::")
    file, _, full = test.partition("::")
    return where in file and name in full


def record_of(selector: str, lines: list[dict[str, str]]) -> Record | None:
    """What the last run of the tests of a row left; None when they have not run.

    When tests have failed, the record has their figures alone.
    """
    outcomes: dict[str, str] = {}
    figures: dict[str, list[str]] = {}
    running: dict[str, list[str]] = {}
    at = ""
    for line in lines:
        test = line["test"]
        if not is_of(test, selector):
            continue
        at = line["at"][:10]
        if "figure" in line:
            running.setdefault(test, []).append(line["figure"])
        else:
            outcomes[test], figures[test] = line["outcome"], running.pop(test, [])
    if not outcomes:
        return None
    failed = [test for test, outcome in outcomes.items() if outcome != "passed"]
    return {
        "date": at,
        "tests": len(outcomes),
        "failed": [test.rpartition("::")[2] for test in failed],
        "figures": [figure for test in figures if not failed or test in failed for figure in figures[test]],
    }


def figure_of(record: Record, number: Number | None) -> str:
    """The cell of a record: its number, else how many tests passed."""
    text = number_in(record["figures"], number)
    if record["failed"]:
        return f"FAILED: {text or record['failed'][0]}"
    return text or (f"{record['tests']} of {record['tests']} tests passed" if record["tests"] > 1 else "passed")


def number_in(figures: list[str], number: Number | None) -> str:
    """The number of these figures in its words, as the figure has it unless it is a sum; nothing when no figure has it."""
    if number is None:
        return ""
    found = [match[match.lastindex or 0] for figure in figures for match in re.finditer(number.pattern, figure)]
    if not found:
        return ""
    value = number.of(map(float, found))
    return number.words.format(next((text for text in found if float(text) == value), f"{value:g}"))


def table(groups: Groups, records: Records, *, heading_mark: str = "##") -> str:
    """The tables as Markdown."""
    parts = []
    for heading, promises in groups:
        parts += [f"{heading_mark} {heading}\n", "| promise | test | last run |\n| --- | --- | --- |"]
        for promise in promises:
            record = records.get(promise.test)
            cell = NONE if record is None else figure_of(record, promise.number)
            parts.append(f"| {promise.text} | `{promise.test}{'…]' if '[' in promise.test else ''}` | {cell} |")
        parts.append("")
    return "\n".join(parts)


def filled(page: str, groups: Groups, records: Records) -> str:
    """The text of a page with its tables written anew."""
    head, _, rest = page.partition(BEGIN)
    mark = "###" if "\n## " in head else "##"  # below a section of the page, or a section of its own
    return head + BEGIN + table(groups, records, heading_mark=mark) + END + rest.partition(END)[2]


def main() -> None:
    lines = [json.loads(line) for line in FILE.read_text().splitlines()] if FILE.exists() else []
    before: Records = json.loads(RECORDS.read_text())
    selectors = [promise.test for groups in PAGES.values() for _, promises in groups for promise in promises]
    found = {selector: record_of(selector, lines) or before.get(selector) for selector in selectors}
    records: Records = {selector: record for selector, record in found.items() if record is not None}
    RECORDS.write_text(json.dumps(records, indent=2, ensure_ascii=False) + "\n")
    for page, groups in PAGES.items():
        path = ROOT / page
        path.write_text(filled(path.read_text(), groups, records))


if __name__ == "__main__":
    main()
