"""Which columns of the input a scoring repeats."""

from __future__ import annotations

import pytest

from serve_app.batch.score_options import ScoreOptions
from serve_app.errors import UsageError

COLUMNS = ["id", "town", "Town, Country", "a,b", "a", "b", " c"]


def kept(*values: str) -> tuple[str, ...]:
    return ScoreOptions(data="t.csv", out="out", keep=list(values)).kept_columns(lambda: COLUMNS)


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ((), ()),
        (("id", "town"), ("id", "town")),
        (("id,town",), ("id", "town")),
        (("id, town",), ("id", "town")),
        (("Town, Country", "id"), ("Town, Country", "id")),
        (("a,b",), ("a,b",)),
        (("a", "b"), ("a", "b")),
        (("nonsense, id",), ("nonsense", "id")),
        (("",), ()),
    ],
)
def test_a_value_is_the_name_of_a_column_or_a_list_of_names(values: tuple[str, ...], names: tuple[str, ...]) -> None:
    assert kept(*values) == names


def test_the_input_is_not_asked_for_names_without_a_comma() -> None:
    def unavailable() -> list[str]:
        raise AssertionError

    assert ScoreOptions(data="t.csv", out="out", keep=["id", "town"]).kept_columns(unavailable) == ("id", "town")


@pytest.mark.parametrize("values", [("id", "id"), ("id,id",), ("id,town", "town")])
def test_a_column_is_kept_once(values: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="twice"):
        kept(*values)
