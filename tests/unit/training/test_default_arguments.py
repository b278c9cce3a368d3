"""The defaults of a training from the environment."""

from __future__ import annotations

import pytest

from serve_app.errors import UsageError
from training.default_arguments import default_arguments

TABLE = {"IRIS_TRAINING_DATA": "/data/in/t.csv", "IRIS_TRAINING_TARGET": "price", "IRIS_TRAINING_FLAGS": "--drop 'floor area'"}


def test_the_environment_comes_before_the_command_line_so_that_a_flag_of_the_user_wins() -> None:
    assert default_arguments(["--drop", "id"], TABLE) == ["--data", "/data/in/t.csv", "--target", "price", "--drop", "floor area"]


@pytest.mark.parametrize("arguments", [["--data", "other.csv"], ["--data=other.csv", "--target", "y"], ["--help"]])
def test_a_table_of_the_command_line_takes_nothing_from_the_environment(arguments: list[str]) -> None:
    assert default_arguments(arguments, TABLE) == []


def test_without_settings_there_are_no_defaults() -> None:
    assert default_arguments([], {"IRIS_TRAINING_DATA": " ", "IRIS_TRAINING_FLAGS": ""}) == []


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"IRIS_TRAINING_FLAGS": "--drop 'id"}, "IRIS_TRAINING_FLAGS"),
        ({"IRIS_TRAINING_FLAGS": "--target=price"}, "IRIS_TRAINING_TARGET"),
        ({"IRIS_TRAINING_FLAGS": "--data t.csv"}, "IRIS_TRAINING_DATA"),
        ({"IRIS_TRAINING_TARGET": "price"}, "IRIS_TRAINING_DATA"),
    ],
)
def test_settings_that_contradict_are_refused_with_the_name_of_the_one_to_change(environment: dict[str, str], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        default_arguments([], environment)
