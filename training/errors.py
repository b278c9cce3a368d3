"""What can end a training besides success, as one sentence each.

IrisApiError
├── Mistake        the caller's: a flag, a table, an estimator; the sentence says what to change
└── Unreachable    MLflow does not answer, or refuses
"""

from __future__ import annotations

from serve_app.core.errors import IrisApiError


class Mistake(IrisApiError):
    """Something that the caller can put right."""


class Unreachable(IrisApiError):
    """The tracking server cannot be used; nothing was trained, or nothing was published."""
