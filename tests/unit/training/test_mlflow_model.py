"""Addresses of models in MLflow, taken apart without a server."""

from __future__ import annotations

from pathlib import Path

import pytest

from serve_app.errors import UsageError
from training.mlflow_model import Address, fetch, is_address, parse_address

ID = "m-" + "0123456789abcdef" * 2
RUN = "0123456789abcdef" * 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("models:/Churn@champion", {"name": "Churn", "alias": "champion"}),
        ("models:/Churn rate@champion", {"name": "Churn rate", "alias": "champion"}),
        ("models:/Churn/3", {"name": "Churn", "version": "3"}),
        ("models:/Churn/latest", {"name": "Churn"}),
        ("models:/Churn/production", {"name": "Churn", "stage": "Production"}),
        (f"models:/{ID}", {"model_id": ID}),
        (f"runs:/{RUN}/model", {"run_id": RUN, "path": "model"}),
        (f"runs:/{RUN}/deep/down/model/", {"run_id": RUN, "path": "deep/down/model"}),
    ],
)
def test_every_form_of_an_address_is_understood(text: str, expected: dict[str, str]) -> None:
    assert is_address(text)
    assert parse_address(text) == Address(text, **expected)


@pytest.mark.parametrize(
    ("text", "fix"),
    [
        ("models:/Churn", "models:/Churn@champion"),
        (ID, f"models:/{ID}"),
        (f"runs:/{RUN}", "runs:/ID/PATH"),
        ("runs:/", "runs:/ID/PATH"),
        (f"runs:/{RUN}/../other", "runs:/ID/PATH"),
        ("models:/Churn/newest", "models:/Churn@newest"),
        ("models:/Churn@champion/model", "models:/NAME@ALIAS"),
        ("models:/@champion", "models:/NAME@ALIAS"),
        ("models:/", "models:/NAME@ALIAS"),
        ("models://Churn/1", "models:/NAME@ALIAS"),
        ("s3://bucket/model", "models:/NAME@ALIAS"),
        ("Churn@champion", "models:/NAME@ALIAS"),
    ],
)
def test_a_wrong_address_is_refused_with_what_to_write(text: str, fix: str) -> None:
    with pytest.raises(UsageError, match=fix):
        parse_address(text)


@pytest.mark.parametrize("text", ["model.joblib", "models/model.pkl", "./runs", "C:/model.pkl"])
def test_files_are_no_addresses(text: str) -> None:
    assert not is_address(text)


def test_an_address_without_a_server_names_the_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="--tracking-uri"):
        fetch("models:/Churn@champion", tmp_path / "model")
    assert list(tmp_path.iterdir()) == []
