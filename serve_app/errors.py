"""The errors of the product, without a word of HTTP.

IrisApiError
├── InvalidInput        a request or a row breaks the signature
│   ├── Malformed       the body is no JSON document of the expected shape
│   ├── TooManyRows     more rows in one call than allowed
│   ├── NotServed       another model, or another version, than the one that is served
│   └── TooLarge        a row, or what stands beside the rows, is larger than allowed
├── NotFinite           the model computed NaN or infinity for a row
├── NoModel             nothing is loaded that could answer
├── BundleRefused       a candidate must not be served; the old model stays
├── StoreError          the store cannot do what was asked; nothing was changed
├── UsageError          a flag, a table or an estimator is wrong; the sentence says what to change
└── BackendUnavailable  MLflow, Ray or a file system does not answer, or refuses
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class IrisApiError(Exception):
    """Base of all errors that carry one sentence for a person."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with one field: where, which rule (`code`), and a sentence that never repeats the input."""

    field: str
    code: str
    message: str


class InvalidInput(IrisApiError):
    """A row breaks the signature; `problems` names every field that does."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        super().__init__("; ".join(f"{p.field}: {p.message}" for p in problems))


class Malformed(InvalidInput):
    """The body is not JSON, or not a JSON object."""


class TooManyRows(InvalidInput):
    """More rows than one call may hold."""


class NotServed(InvalidInput):
    """The request names a model that is not served, or, when `served` is given, another version than this one."""

    def __init__(self, served: str | None = None) -> None:
        self.served = served
        super().__init__([])


class TooLarge(InvalidInput):
    """A row of a batch, or what its body holds beside the rows, is larger than allowed."""


class NotFinite(IrisApiError):
    """The model computed NaN or infinity; `rows` are the positions of such rows in the request or table, the first ones."""

    MESSAGE = "the model computed a result that is not a finite number"

    def __init__(self, rows: Sequence[int]) -> None:
        self.rows = rows
        super().__init__(self.MESSAGE)


class NoModel(IrisApiError):
    """No model is loaded; the message says why."""


class BundleRefused(IrisApiError):
    """A bundle must not be served.

    `reason` is one of a short fixed list (it becomes a metric label); `final` tells whether the same bundle
    is refused for good, or may be looked at again (a file that is still being copied, a disk that hiccups).
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
    """The store cannot be read or written; what it held before it still holds."""


class UsageError(IrisApiError):
    """A flag, a table or an estimator is wrong; the sentence says what to change."""


class BackendUnavailable(IrisApiError):
    """MLflow, Ray or a file system cannot be used; nothing was trained, or nothing was published."""
