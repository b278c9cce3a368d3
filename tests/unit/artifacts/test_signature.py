from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.artifacts.signature import LARGEST, LONGEST_TEXT, Feature, Signature, legacy_name, legacy_signature
from serve_app.inference.warm_up import sample_rows
from serve_app.protocols import decode as codec
from tests.support.signatures import anything, signatures


@given(signatures())
def test_a_signature_survives_the_trip_through_json(signature: Signature) -> None:
    assert Signature.from_dict(orjson.loads(orjson.dumps(signature.to_dict()))) == signature


@given(signatures())
def test_the_example_of_a_signature_is_an_input_that_is_answered(signature: Signature) -> None:
    body = orjson.dumps(signature.example())
    assert codec.row_decoder(signature, unknown="refuse")(body).shape == (1, len(signature.features))


@given(signatures())
def test_sample_rows_stay_inside_the_bounds_and_are_always_the_same(signature: Signature) -> None:
    rows = sample_rows(signature, 32)
    assert (rows == sample_rows(signature, 32)).all()
    for column, feature in zip(rows.T, signature.features, strict=True):
        if feature.kind == "number":
            least, most = feature.bounds
            assert (column >= least).all()
            assert (column <= most).all()


@given(signatures())
def test_a_signature_of_one_class_or_number_has_the_keys_of_old(signature: Signature) -> None:
    new = {"outputs", "quantiles", "distance", "coverage"}
    used = {name for name in new if getattr(signature, name)}
    assert new & signature.to_dict().keys() == used


@given(
    anything
    | st.fixed_dictionaries({"features": anything, "task": st.sampled_from(["regression", "classification"]), "classes": anything})
)
def test_anything_else_is_refused_with_a_value_error(raw: Any) -> None:
    with pytest.raises(ValueError):
        Signature.from_dict(raw)


@pytest.mark.parametrize(
    "change",
    [
        {"features": []},
        {"features": [{"name": "a"}, {"name": "a"}]},
        {"features": [{"name": 3}]},
        {"features": [{"name": "a", "kind": "date"}]},
        {"features": [{"name": "a", "date": {"parts": ["days"]}}]},
        {"features": [{"name": "a", "kind": "date", "date": {"parts": []}}]},
        {"features": [{"name": "a", "kind": "date", "date": {"parts": ["century"]}}]},
        {"features": [{"name": "a", "kind": "date", "date": {"parts": ["days"], "formats": ["(a+)+"]}}]},
        {"features": [{"name": "a", "kind": "date", "date": {"parts": ["days"], "formats": ["%Y"] * 9}}]},
        {"features": [{"name": "a", "max_length": 5}]},
        {"features": [{"name": "a", "kind": "text", "max_length": 0}]},
        {"features": [{"name": "a", "kind": "text", "max_length": LONGEST_TEXT + 1}]},
        {"features": [{"name": "a", "minimum": "0"}]},
        {"features": [{"name": "a", "nullable": "yes"}]},
        {"features": [{"name": "a", "kind": "category", "categories": "abc"}]},
        {"task": "clustering"},
        {"classes": ["one"]},
        {"classes": [["a"], ["b"]]},
        {"classes": ["1", 1]},
        {"probabilistic": 1},
    ],
    ids=str,
)
def test_a_signature_with_one_wrong_part_is_refused(change: dict[str, Any]) -> None:
    right = {"features": [{"name": "a"}], "task": "classification", "classes": ["x", "y"]}
    assert Signature.from_dict(right).names == ("a",)
    with pytest.raises(ValueError):
        Signature.from_dict({**right, **change})


NUMBERS = [{"name": "a"}, {"name": "b"}]
CLASSES = [{"name": "a", "classes": ["x", "y"]}, {"name": "b", "classes": [0, 1, 2], "probabilistic": False}]


@pytest.mark.parametrize(
    ("right", "shape", "wrong"),
    [
        (
            {"task": "regression", "outputs": NUMBERS},
            (2,),
            [
                {"outputs": NUMBERS[:1]},
                {"outputs": [NUMBERS[0]] * 2},
                {"classes": ["x", "y"]},
                {"outputs": CLASSES},
                {"task": "clustering"},
            ],
        ),
        (
            {"task": "classification", "outputs": CLASSES},
            (3,),
            [
                {"outputs": NUMBERS},
                {"outputs": [CLASSES[0], {"name": "b", "classes": [1]}]},
                {"outputs": [{"name": "a", "classes": ["b_x", "y"]}, {"name": "a_b", "classes": ["x", "y"]}]},
                {"threshold": 0.5},
                {"coverage": {"level": 0.9, "bound": 0.1}},
                {"quantiles": [0.5]},
            ],
        ),
        (
            {"task": "regression", "quantiles": [0.1, 0.9]},
            (2,),
            [{"quantiles": value} for value in ([0.9, 0.1], [0.1, 0.1], [0.0, 0.5], [0.5, 1.0], ["0.1"], 0.5)]
            + [{"coverage": {"level": 0.9, "bound": 1.0}}, {"task": "outlier detection"}],
        ),
        (
            {"task": "regression", "coverage": {"level": 0.9, "bound": 1.0}},
            (),
            [
                {"coverage": {"level": level, "bound": bound}}
                for level, bound in ((0, 1), (1, 1), (0.9, -1), (0.9, 1e39), (0.9, None))
            ]
            + [{"task": "outlier detection"}],
        ),
        (
            {"task": "classification", "classes": ["x", "y"], "coverage": {"level": 0.9, "bound": 0.5}},
            (2,),
            [{"probabilistic": False}],
        ),
        ({"task": "outlier detection"}, (), [{"classes": [0, 1]}, {"distance": True}]),
        (
            {"task": "clustering", "classes": [0, 1, 2], "probabilistic": False, "distance": True},
            (2,),
            [{"classes": []}, {"classes": ["a", "b"]}, {"classes": [0, 0]}, {"classes": [True, False]}, {"probabilistic": True}],
        ),
        ({"task": "clustering", "classes": [0, 1, 2]}, (4,), []),
    ],
    ids=["numbers", "classes", "quantiles", "interval", "prediction set", "outlier", "distance", "clusters"],
)
def test_the_shape_of_an_answer_is_checked(right: dict[str, Any], shape: tuple[int, ...], wrong: list[dict[str, Any]]) -> None:
    features = {"features": [{"name": "x"}]}
    assert Signature.from_dict({**features, **right}).score_shape == shape
    for change in wrong:
        with pytest.raises(ValueError):
            Signature.from_dict({**features, **right, **change})


def test_several_targets_have_their_columns_of_the_scores_in_order() -> None:
    signature = Signature.from_dict({"features": [{"name": "x"}], "task": "classification", "outputs": CLASSES})
    assert [(at, part.target, part.classes) for at, part in signature.parts] == [
        (slice(0, 2), "a", ("x", "y")),
        (2, "b", (0, 1, 2)),
    ]


@pytest.mark.parametrize(
    ("feature", "usual"),
    [
        (Feature("a"), (0.0, 1.0)),
        (Feature("a", low=2.0, high=3.0), (2.0, 3.0)),
        (Feature("a", minimum=5.0), (5.0, 5.0)),
        (Feature("a", maximum=-5.0), (-5.0, -5.0)),
        (Feature("a", minimum=1.0, maximum=2.0, low=0.0, high=9.0), (1.0, 2.0)),
        (Feature("a", low=-1e300, high=1e300), (-LARGEST, LARGEST)),
    ],
    ids=str,
)
def test_the_usual_range_is_what_training_saw_inside_the_contract(feature: Feature, usual: tuple[float, float]) -> None:
    assert feature.usual == usual


def test_the_example_that_training_saw_is_shown_as_it_is() -> None:
    features = (Feature("a", example=0.1), Feature("b", "category", categories=("x", "y")), Feature("c", "boolean"))
    assert Signature(features, "regression").example() == {"a": 0.1, "b": "x", "c": True}


def test_names_of_the_old_iris_table_become_what_clients_write_and_get_the_contract_of_old() -> None:
    names = ["sepal length (cm)", "sepal width (cm)", "petal length (cm)", "petal width (cm)"]
    signature = legacy_signature(names, ["setosa", "versicolor", "virginica"])
    assert signature.names == ("sepal_length", "sepal_width", "petal_length", "petal_width")
    assert {feature.bounds for feature in signature.features} == {(0.0, 20.0)}
    assert signature.task == "classification"


def test_other_plain_names_are_kept_and_without_classes_it_is_a_regression() -> None:
    signature = legacy_signature(["Sepal Length (cm)", "age"], [])
    assert signature.names == ("Sepal Length (cm)", "age")
    assert signature.task == "regression"
    assert legacy_name("Sepal  Length (cm)") == "sepal_length"
