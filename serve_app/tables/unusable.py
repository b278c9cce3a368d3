"""The refusal of a column that cannot be learnt from."""

from __future__ import annotations

import shlex

from serve_app.errors import UsageError


class UnusableColumn(UsageError):
    """A column that cannot be learnt from.

    `why` completes the sentence `column 'x' …`; `fix` says how to correct the table, empty when the column can only be left out.
    """

    def __init__(self, name: str, why: str, fix: str = "") -> None:
        self.name, self.why, self.fix = name, why, fix
        advice = f"{fix}, or leave the column out" if fix else "leave it out"
        super().__init__(f"column '{name}' {why}: {advice} with --drop {shlex.quote(name)}")
