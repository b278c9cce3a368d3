"""The problems of a table, collected so that one message names all of them, with the flags that skip them."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field

from serve_app.errors import UsageError
from serve_app.tables.unusable import UnusableColumn

DROP_UNLABELLED = "--drop-rows-without-target"
DROP_RARE = "--drop-rare-classes"


@dataclass(frozen=True, slots=True)
class Complaint:
    """One problem: the cause (`why`), how to `fix` the table, and the `flag` that skips the problem (None: no flag does)."""

    why: str
    fix: str
    flag: str | None = None

    @property
    def sentence(self) -> str:
        """The text of this problem."""
        advice = [text for text in (self.fix, f"use {self.flag}" if self.flag else "") if text]
        return f"{self.why}: {', or '.join(advice)}" if advice else self.why


@dataclass(slots=True)
class Complaints:
    """The problems of one table, in the order of their detection."""

    gathered: list[Complaint] = field(default_factory=list)

    def add(self, complaint: Complaint) -> None:
        """Remember a complaint."""
        self.gathered.append(complaint)

    def add_column(self, error: UnusableColumn) -> None:
        """Add an unusable column."""
        flag = f"--drop {shlex.quote(error.name)}"
        self.add(Complaint(f"column '{error.name}' {error.why}", error.fix, flag))

    def raise_any(self) -> None:
        """Raise UsageError with all problems and one line of flags to paste, if there are problems."""
        if not self.gathered:
            return
        if len(self.gathered) == 1:
            raise UsageError(self.gathered[0].sentence)
        reasons = "; ".join(complaint.why + (f" ({complaint.fix})" if complaint.fix else "") for complaint in self.gathered)
        flags = " ".join(complaint.flag for complaint in self.gathered if complaint.flag)
        advice = f"correct them, or use {flags}"
        if not all(complaint.flag for complaint in self.gathered):
            advice = f"correct them; {flags} skips some of them" if flags else "correct them"
        raise UsageError(f"this table has {len(self.gathered)} problems: {reasons}: {advice}")
