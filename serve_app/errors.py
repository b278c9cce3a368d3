"""The errors of the product. They do not depend on HTTP.

IrisApiError
├── InvalidInput        a request or a row breaks the signature
│   ├── Malformed       the body cannot be read in its format
│   ├── TooManyRows     the request holds more rows than allowed
│   ├── NotServed       the request names a model or a version that is not served
│   └── TooLarge        a row, the rest of the body, or the unpacked body is larger than allowed
├── NotFinite           the model computed NaN or infinity for a row
├── NoModel             no model is loaded
├── BundleRefused       a candidate must not be served; the replica keeps the old model
├── StoreError          the store cannot be read or written; its content did not change
├── UsageError          a flag, a table or an estimator is wrong; the message says what to change
└── BackendUnavailable  MLflow, Ray or a file system does not answer, or refuses the call
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class IrisApiError(Exception):
    """Base of all errors. The message is one sentence for the user."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A rule that one field breaks: the field, the code of the rule, and a message that never repeats the input."""

    field: str
    code: str
    message: str


class InvalidInput(IrisApiError):
    """A request or a row breaks the signature; `problems` lists the fields at fault."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        super().__init__("; ".join(f"{p.field}: {p.message}" for p in problems))


class Malformed(InvalidInput):
    """The body cannot be read in its format: JSON, CSV, Arrow, Parquet or protobuf."""


class TooManyRows(InvalidInput):
    """The request holds more rows than allowed."""


class NotServed(InvalidInput):
    """The request names a model that is not served. With `served`, it names another version than `served`."""

    def __init__(self, served: str | None = None) -> None:
        self.served = served
        super().__init__([])


class TooLarge(InvalidInput):
    """A row, the rest of the body, or the unpacked body is larger than allowed."""


class NotFinite(IrisApiError):
    """The model computed NaN or infinity; `rows` are the positions of the first such rows in the request or table."""

    MESSAGE = "the model computed a result that is not a finite number"

    def __init__(self, rows: Sequence[int]) -> None:
        self.rows = rows
        super().__init__(self.MESSAGE)


class NoModel(IrisApiError):
    """No model is loaded; the message says why."""


class BundleRefused(IrisApiError):
    """A bundle must not be served.

    `reason` is one of REASONS and becomes a metric label. With `final`, the same bundle is refused for good. Otherwise the replica
    may check it again, because a file may still be incomplete or a disk may have failed for a moment.
    """

    REASONS = (
        *("pointer", "manifest", "digest", "format", "libraries", "signature"),
        *("golden", "load", "unreadable", "forbidden", "unsigned"),
    )

    def __init__(self, reason: str, message: str, *, final: bool = True) -> None:
        assert reason in self.REASONS, reason
        self.reason = reason
        self.final = final
        super().__init__(message)


class StoreError(IrisApiError):
    """The store cannot be read or written; its content did not change."""


class UsageError(IrisApiError):
    """A flag, a table or an estimator is wrong; the message says what to change."""


class BackendUnavailable(IrisApiError):
    """MLflow, Ray or a file system cannot be used. No model was trained, or no model was published."""
