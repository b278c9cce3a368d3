"""Settings: right ones are read, wrong ones stop the start with one sentence."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import pytest

from serve_app.http.auth import change_file, make_key
from serve_app.secret_variables import pop_secrets
from serve_app.settings import Settings, SettingsError, export_mlflow_secrets, load_settings, table

DOCS = Path(__file__).parents[2] / "docs" / "reference" / "settings.md"


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)


def test_defaults_are_those_of_a_laptop() -> None:
    settings = load_settings()
    assert settings.environment == "development"
    assert settings.api_key is None
    assert settings.model_dir == Path("models")
    assert settings.iris_model_source == "store"


KEY = "6f1c0d9b7ae24853bd0e94c7f2a1586d"


def test_the_names_of_old_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {
        "ENVIRONMENT": "production",
        "API_KEY": KEY,
        "CORS_ORIGINS": "http://localhost:3000, https://shop.example",
        "LOG_LEVEL": "debug",
        "MODEL_DIR": "/app/models",
        "MLFLOW_TRACKING_URI": "http://mlflow-server-service:5000",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    settings = load_settings()
    assert settings.cors_origins == ("http://localhost:3000", "https://shop.example")
    assert settings.log_level == "DEBUG"
    assert settings.model_dir == Path("/app/models")
    assert KEY not in repr(settings)


def test_a_secret_is_read_from_its_file_and_a_variable_takes_precedence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    other = secrets.token_hex(32)
    (tmp_path / "API_KEY").write_text(KEY + "\n")
    (tmp_path / "MLFLOW_TRACKING_PASSWORD").write_text("secret\n")
    monkeypatch.setenv("IRIS_SECRETS_DIR", str(tmp_path))
    monkeypatch.setenv("ENVIRONMENT", "production")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "")  # so that it is put back
    monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD")
    settings = load_settings()
    assert settings.api_key is not None
    assert settings.api_key.get_secret_value() == KEY
    export_mlflow_secrets(settings)
    assert os.environ["MLFLOW_TRACKING_PASSWORD"] == "secret"
    assert settings.http_options(sends_request_id=False).api_key_folder == tmp_path
    monkeypatch.setenv("API_KEY", other)
    settings = load_settings()
    assert settings.api_key is not None
    assert settings.api_key.get_secret_value() == other
    assert settings.http_options(sends_request_id=False).api_key_folder is None


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"ENVIRONMENT": "production"}, "API_KEY: production needs a key"),
        ({"ENVIRONMENT": "production", "API_KEY": "  "}, "API_KEY: production needs a key"),
        ({"ENVIRONMENT": "production", "API_KEY": "short"}, "at least 32 random characters"),
        ({"ENVIRONMENT": "production", "API_KEY": "k" * 32}, "at least 32 random characters"),
        ({"ENVIRONMENT": "production", "API_KEY": KEY, "API_KEY_PREVIOUS": "k" * 32}, "API_KEY_PREVIOUS: the key"),
        ({"ENVIRONMENT": "production", "API_KEY": KEY, "CORS_ORIGINS": "*"}, "CORS_ORIGINS: production does not allow"),
        ({"ENVIRONMENT": "staging"}, "ENVIRONMENT: "),
        ({"MODEL_DIR": __file__}, "is a file; give a folder"),
        ({"IRIS_SECRETS_DIR": "/nowhere"}, "IRIS_SECRETS_DIR: /nowhere is not a folder"),
        ({"IRIS_POLL_SECONDS": "soon"}, "IRIS_POLL_SECONDS: "),
        ({"IRIS_POLL_SECONDS": "0"}, "IRIS_POLL_SECONDS: "),
        ({"IRIS_MODEL_SOURCE": "registry"}, "IRIS_MODEL_SOURCE: "),
        ({"IRIS_MODEL_SOURCE": "mlflow"}, "IRIS_MODEL_SOURCE: `mlflow` needs an MLflow server; set MLFLOW_TRACKING_URI="),
        ({"IRIS_MAX_ROWS": "-1"}, "IRIS_MAX_ROWS: "),
        ({"IRIS_RATE_LIMIT_PER_KEY": "600"}, "IRIS_RATE_LIMIT_PER_KEY: write a rate as 600/minute"),
        ({"IRIS_RATE_LIMIT_PER_CLIENT": "0/minute"}, "IRIS_RATE_LIMIT_PER_CLIENT: write a rate as 600/minute"),
        ({"IRIS_OTLP_ENDPOINT": "collector:4318"}, "IRIS_OTLP_ENDPOINT: write the collector's address as http://collector:4318"),
        ({"IRIS_OTLP_ENDPOINT": "http://me:secret@collector"}, "IRIS_OTLP_ENDPOINT: write the collector's address"),
        ({"IRIS_TRACE_RATIO": "2"}, "IRIS_TRACE_RATIO: "),
        ({"IRIS_ROOT_PATH": "api"}, "IRIS_ROOT_PATH: write a path as /api/v1"),
        ({"IRIS_ROOT_PATH": "//evil.example"}, "IRIS_ROOT_PATH: write a path as /api/v1"),
        ({"IRIS_UNKNOWN_FIELDS": "drop"}, "IRIS_UNKNOWN_FIELDS: "),
        ({"IRIS_TRUSTED_PROXIES": "10.0.0.0/8,all"}, "IRIS_TRUSTED_PROXIES: write addresses or networks"),
        ({"ENVIRONMENT": "production", "IRIS_API_KEYS_FILE": "/nowhere/keys.json"}, "IRIS_API_KEYS_FILE: /nowhere/keys.json"),
        ({"ENVIRONMENT": "production", "IRIS_API_KEYS_FILE": "/dev/null"}, "IRIS_API_KEYS_FILE: /dev/null is not JSON"),
    ],
)
def test_a_wrong_setting_is_one_sentence_that_names_it(
    monkeypatch: pytest.MonkeyPatch, values: dict[str, str], sentence: str
) -> None:
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "short" not in str(caught.value)


@pytest.mark.parametrize("around", ["\n", "\r\n", " ", "\t\n\n"], ids=repr)
def test_white_space_and_line_ends_around_a_value_are_not_part_of_it(monkeypatch: pytest.MonkeyPatch, around: str) -> None:
    values = {
        "ENVIRONMENT": "production",
        "API_KEY": KEY,
        "CORS_ORIGINS": "https://shop.example",
        "LOG_LEVEL": "debug",
        "MODEL_DIR": "/app/models",
        "MLFLOW_TRACKING_URI": "http://mlflow:5000",
        "IRIS_MODEL_NAME": "House",
        "IRIS_PREDICTOR": "onnx",
        "IRIS_ALLOW_JOBLIB": "false",
        "IRIS_MAX_ROWS": "7",
        "IRIS_RATE_LIMIT_PER_KEY": "600/minute",
        "IRIS_TRUSTED_PROXIES": "10.0.0.0/8",
        "IRIS_UNKNOWN_FIELDS": "refuse",
        "IRIS_ROOT_PATH": "/api/v1/",
        "IRIS_OTLP_ENDPOINT": "http://collector:4318",
        "IRIS_LOG_FORMAT": "json",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    plain = load_settings()
    for name, value in values.items():
        monkeypatch.setenv(name, f"{around}{value}{around}")
    assert load_settings() == plain
    assert plain.iris_root_path == "/api/v1"
    assert load_settings().http_options(sends_request_id=True).api_key == KEY


def test_a_key_that_is_only_white_space_is_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEY", " \n")
    assert load_settings().api_key is None


def test_the_secrets_of_mlflows_client_lose_their_line_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret\n")
    export_mlflow_secrets(load_settings())
    assert os.environ["MLFLOW_TRACKING_PASSWORD"] == "secret"
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "token\r\n")
    assert pop_secrets()["MLFLOW_TRACKING_TOKEN"] == "token"


def test_an_empty_variable_is_one_that_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.setenv(name.upper(), "")
    assert load_settings() == Settings()
    assert load_settings().model_dir == Path("models")


def test_production_starts_with_a_file_of_keys_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    monkeypatch.setenv("ENVIRONMENT", "production")
    monkeypatch.setenv("IRIS_API_KEYS_FILE", str(file))
    file.write_text("[]")
    with pytest.raises(SettingsError, match="production needs a key"):
        load_settings()
    change_file(file, add=make_key("alice")[1])
    assert load_settings().iris_api_keys_file == file


def test_a_broken_file_of_keys_does_not_stop_a_start_with_a_plain_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENVIRONMENT", "production")
    monkeypatch.setenv("API_KEY", KEY)
    monkeypatch.setenv("IRIS_API_KEYS_FILE", "/nowhere/keys.json")
    assert load_settings().api_key is not None


def test_limits_and_proxies_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IRIS_RATE_LIMIT_PER_KEY", "600/minute")
    monkeypatch.setenv("IRIS_RATE_LIMIT_PER_CLIENT", " ")
    monkeypatch.setenv("IRIS_TRUSTED_PROXIES", "10.0.0.0/8, ::1")
    settings = load_settings()
    assert (settings.iris_rate_limit_per_key, settings.iris_rate_limit_per_client) == ("600/minute", None)
    assert settings.iris_trusted_proxies == ("10.0.0.0/8", "::1")


def test_the_table_in_the_docs_is_the_one_of_the_code() -> None:
    assert table() in DOCS.read_text()


def test_production_runs_without_a_key_only_when_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENVIRONMENT", "production")
    with pytest.raises(SettingsError, match="IRIS_ALLOW_ANONYMOUS"):
        load_settings()
    monkeypatch.setenv("IRIS_ALLOW_ANONYMOUS", "true")
    assert load_settings().http_options(sends_request_id=False).api_key is None
    monkeypatch.setenv("API_KEY", KEY)
    with pytest.raises(SettingsError, match="IRIS_ALLOW_ANONYMOUS"):
        load_settings()


def test_the_routes_of_vertex_are_read_from_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIP_HEALTH_ROUTE", "/v1/endpoints/1/deployedModels/2")
    monkeypatch.setenv("AIP_PREDICT_ROUTE", "/v1/endpoints/1/deployedModels/2:predict")
    options = load_settings().http_options(sends_request_id=False)
    assert options.health_route == "/v1/endpoints/1/deployedModels/2"
    assert options.predict_route == "/v1/endpoints/1/deployedModels/2:predict"


@pytest.mark.parametrize("route", ["predict", "/", "//x", "/a b", "/{name}", "/predict", "/predict/batch", "/invocations"])
def test_a_route_that_cannot_be_that_of_vertex_is_refused(monkeypatch: pytest.MonkeyPatch, route: str) -> None:
    monkeypatch.setenv("AIP_PREDICT_ROUTE", route)
    with pytest.raises(SettingsError, match="AIP_PREDICT_ROUTE"):
        load_settings()
