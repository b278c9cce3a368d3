"""`MLmodel` as MLflow writes it, and as nobody should."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
import yaml

from serve_app.artifacts.mlflow_description import MAX_COLUMNS, Column, Description, parse_description
from serve_app.errors import BundleRefused

PYFUNC = {"loader_module": "mlflow.sklearn", "python_version": "3.11.7"}


def described(flavors: dict[str, Any], **keys: Any) -> Description:
    return parse_description(yaml.safe_dump({"flavors": {"python_function": PYFUNC, **flavors}, **keys}).encode())


@pytest.mark.parametrize(
    ("flavor", "fields", "path", "file_format"),
    [
        ("sklearn", {"pickled_model": "model.pkl", "serialization_format": "cloudpickle"}, "model.pkl", "cloudpickle"),
        ("sklearn", {"pickled_model": "model.skops", "serialization_format": "skops"}, "model.skops", "skops"),
        ("sklearn", {}, "model.pkl", "pickle"),
        ("xgboost", {"data": "model.ubj", "model_class": "xgboost.sklearn.XGBClassifier"}, "model.ubj", "xgboost"),
        ("xgboost", {"data": "model.json"}, "model.json", "xgboost"),
        ("lightgbm", {"data": "model.skops"}, "model.skops", "skops"),
        ("lightgbm", {"data": "model.lgb"}, "model.lgb", "lightgbm"),
        ("catboost", {"data": "model.cb"}, "model.cb", "catboost"),
    ],
)
def test_the_file_of_a_flavor_and_its_format_are_found(flavor: str, fields: dict[str, str], path: str, file_format: str) -> None:
    file = described({flavor: fields}).model_file()
    assert (file.flavor, file.path, file.format, file.model_class) == (flavor, path, file_format, fields.get("model_class"))


@pytest.mark.parametrize(
    ("flavors", "reason"),
    [
        ({}, "format"),
        ({"tensorflow": {"model_path": "tf2model"}}, "format"),
        ({"sklearn": {"serialization_format": "npz"}}, "format"),
        ({"xgboost": {"data": "model.bin"}}, "format"),
        ({"xgboost": {"data": "model.cbm"}}, "format"),
        ({"sklearn": {"pickled_model": "../../etc/passwd"}}, "manifest"),
        ({"sklearn": {"pickled_model": "/etc/passwd"}}, "manifest"),
    ],
)
def test_what_is_no_known_model_is_refused_for_good(flavors: dict[str, Any], reason: str) -> None:
    with pytest.raises(BundleRefused) as refused:
        described(flavors).model_file()
    assert (refused.value.reason, refused.value.final) == (reason, True)


def columns(specs: Any) -> tuple[Column, ...] | None:
    return described({}, signature={"inputs": orjson.dumps(specs).decode(), "outputs": None}).columns


def test_columns_have_the_names_and_types_of_the_signature() -> None:
    specs = [{"type": "double", "name": "a"}, {"type": "string", "name": "b", "required": False}]
    assert columns(specs) == (Column("a", "double", True), Column("b", "string", False))


@pytest.mark.parametrize("specs", [[], [{"type": "tensor", "tensor-spec": {}}], [{"type": "double"}], {"a": 1}])
def test_a_signature_without_names_gives_no_columns(specs: Any) -> None:
    assert columns(specs) is None


def test_a_model_without_a_signature_has_no_columns_and_no_example() -> None:
    description = described({"sklearn": {"code": None}}, signature=None)
    assert (description.columns, description.example, description.code_folder()) == (None, None, None)


def test_the_folder_of_logged_code_is_named() -> None:
    assert described({"sklearn": {"code": "code"}}).code_folder() == "code"
    with pytest.raises(BundleRefused):
        described({"sklearn": {"code": "../code"}}).code_folder()


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"a: [",
        b"- 1",
        b"flavors: 3",
        b"!!python/object/apply:os.system [echo]",
        b"[" * 100_000,
        b"\xff\xfe\x00",
        b"signature: {inputs: '[1,'}\nflavors: {}",
    ],
)
def test_rubbish_is_refused_and_runs_nothing(raw: bytes) -> None:
    with pytest.raises(BundleRefused) as refused:
        parse_description(raw)
    assert refused.value.reason == "manifest"


def test_a_signature_of_too_many_columns_is_refused() -> None:
    with pytest.raises(BundleRefused):
        columns([{"type": "double", "name": str(at)} for at in range(MAX_COLUMNS + 1)])
