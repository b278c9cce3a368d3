"""The error for a column that cannot be a feature."""

from __future__ import annotations

import shlex

from serve_app.errors import UsageError


class UnusableColumn(UsageError):
    """A column cannot be a feature.

    `why` completes the sentence `column 'x' …`. `fix` says how to correct the table; it is empty when you can only leave out the
    column.
    """

    def __init__(self, name: str, why: str, fix: str = "") -> None:
        self.name, self.why, self.fix = name, why, fix
        advice = f"{fix}, or leave the column out" if fix else "leave it out"
        super().__init__(f"column '{name}' {why}: {advice} with --drop {shlex.quote(name)}")
