from __future__ import annotations

import pytest

from serve_app import errors
from serve_app.errors import BundleRefused, InvalidInput, IrisApiError, Problem


def test_every_error_is_one_of_the_family() -> None:
    found = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert len(found) >= 7
    assert all(issubclass(kind, IrisApiError) for kind in found)


def test_invalid_input_says_every_problem_in_one_line() -> None:
    error = InvalidInput([Problem("a", "type", "must be a number"), Problem("b", "missing", "this field is required")])
    assert str(error) == "a: must be a number; b: this field is required"


def test_a_refusal_has_one_of_the_known_reasons() -> None:
    assert BundleRefused("digest", "no").final
    assert not BundleRefused("unreadable", "not now", final=False).final
    with pytest.raises(AssertionError):
        BundleRefused("mood", "no")
