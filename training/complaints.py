"""What keeps a table from being learnt, gathered so that one message names everything and the flags that go on without it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field

from serve_app.errors import UsageError
from serve_app.tables.unusable import UnusableColumn

DROP_UNLABELLED = "--drop-rows-without-target"
DROP_RARE = "--drop-rare-classes"


@dataclass(frozen=True, slots=True)
class Complaint:
    """One thing that is wrong: `why` it is, how to `fix` the table, and the `flag` that goes on without it (None: no flag does)."""

    why: str
    fix: str
    flag: str | None = None

    @property
    def sentence(self) -> str:
        """The complaint alone."""
        advice = [text for text in (self.fix, f"use {self.flag}" if self.flag else "") if text]
        return f"{self.why}: {', or '.join(advice)}" if advice else self.why


@dataclass(slots=True)
class Complaints:
    """The complaints about one table, in the order in which they were found."""

    gathered: list[Complaint] = field(default_factory=list)

    def add(self, complaint: Complaint) -> None:
        """Remember a complaint."""
        self.gathered.append(complaint)

    def add_column(self, error: UnusableColumn) -> None:
        """Remember a column that cannot be used."""
        flag = f"--drop {shlex.quote(error.name)}"
        self.add(Complaint(f"column '{error.name}' {error.why}", error.fix, flag))

    def raise_any(self) -> None:
        """Raise UsageError with all complaints, and one line of flags to paste, when there are any."""
        if not self.gathered:
            return
        if len(self.gathered) == 1:
            raise UsageError(self.gathered[0].sentence)
        reasons = "; ".join(complaint.why + (f" ({complaint.fix})" if complaint.fix else "") for complaint in self.gathered)
        flags = " ".join(complaint.flag for complaint in self.gathered if complaint.flag)
        advice = f"correct them, or use {flags}"
        if not all(complaint.flag for complaint in self.gathered):
            advice = f"correct them; {flags} leaves out what can be left out" if flags else "correct them"
        raise UsageError(f"{len(self.gathered)} things keep this table from being learnt: {reasons}: {advice}")
