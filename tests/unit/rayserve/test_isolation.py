"""Applications on one machine share no port and no file of HAProxy, unless their user has set the same ones."""

from __future__ import annotations

import os
import secrets
import subprocess
from itertools import chain
from pathlib import Path

import pytest

from serve_app.http.auth import Key, Keys
from serve_app.ray_workers import LOOPBACK_FLAG
from serve_app.rayserve.isolation import (
    FILES,
    FREE_PORTS,
    HAPROXY,
    MAX_PORT,
    MIN_PORT,
    PAGE_PORTS,
    PORT_BLOCKS,
    isolated_environment,
)
from serve_app.secret_variables import MOVED_SECRETS_DIR, SECRETS, SECRETS_DIR
from serve_app.settings import export_mlflow_secrets, load_settings


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*FREE_PORTS, *chain(*PORT_BLOCKS), *FILES, *SECRETS, SECRETS_DIR, MOVED_SECRETS_DIR, HAPROXY, LOOPBACK_FLAG):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    monkeypatch.setenv(LOOPBACK_FLAG, "0")


def environment_of(port: int) -> dict[str, str]:
    before = dict(os.environ)
    with isolated_environment(port):
        environment = {name: value for name, value in os.environ.items() if before.get(name) != value}
    os.environ.clear()
    os.environ.update(before)
    return environment


def test_two_applications_share_nothing() -> None:
    one, other = environment_of(8000), environment_of(8001)
    assert set(one) == set(other) == {*FREE_PORTS, *chain(*PORT_BLOCKS), *FILES}
    assert not set(one.values()) & set(other.values())
    assert len({one[name] for name in FREE_PORTS}) == len(FREE_PORTS)
    blocks = [
        range(int(environment[least]), int(environment[most]) + 1) for environment in (one, other) for least, most in PORT_BLOCKS
    ]
    assert len(set(chain(*blocks))) == sum(map(len, blocks))
    assert all(1024 < port < 32768 for block in blocks for port in block)


def test_what_the_user_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {FREE_PORTS[0]: "8404", MIN_PORT: "30000", MAX_PORT: "31000", "RAY_SERVE_HAPROXY_SOCKET_PATH": "/run/admin.sock"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert not set(variables) & set(environment_of(8000))


def test_the_folder_of_haproxy_goes_with_the_application() -> None:
    with isolated_environment(8000):
        folder = Path(os.environ["RAY_SERVE_HAPROXY_SERVER_STATE_BASE"])
        assert folder.is_dir()
        # The path of a socket may have 107 bytes; Ray puts the node's id of 56 letters into it, HAProxy a process id and `.tmp`.
        assert len(os.environ["RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH"]) + len("/" + 56 * "0") + len(".4194304.tmp") < 108
    assert not folder.exists()


def test_the_secrets_are_files_of_this_user_and_no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEY", "k" * 40)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "p" * 40)
    with isolated_environment(8000):
        assert not set(SECRETS) & set(os.environ)
        folder = Path(os.environ[MOVED_SECRETS_DIR])
        assert folder.stat().st_mode & 0o777 == 0o700
        assert {(file.name, file.stat().st_mode & 0o777) for file in folder.iterdir()} == {
            ("API_KEY", 0o600),
            ("MLFLOW_TRACKING_PASSWORD", 0o600),
        }
        key = load_settings().api_key
        assert key is not None
        assert key.get_secret_value() == "k" * 40
    assert not folder.exists()
    assert MOVED_SECRETS_DIR not in os.environ


def test_secrets_in_the_users_own_folder_stay_beside_those_in_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "api_key").write_text("from-the-file\n")
    (tmp_path / "mlflow_tracking_uri").write_text("http://mlflow:5000")
    monkeypatch.setenv(SECRETS_DIR, str(tmp_path))
    with isolated_environment(8000):
        assert os.environ[SECRETS_DIR] == str(tmp_path)
    monkeypatch.setenv("API_KEY", "from-the-variable")
    with isolated_environment(8000):
        settings = load_settings()
        assert settings.api_key is not None
        assert settings.api_key.get_secret_value() == "from-the-variable"
        assert settings.mlflow_tracking_uri == "http://mlflow:5000"
        assert settings.http_options(sends_request_id=False).api_key_folder is None


def test_a_key_in_the_users_own_folder_is_read_again_also_when_another_secret_is_a_variable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    old, new = secrets.token_hex(32), secrets.token_hex(32)
    (tmp_path / "API_KEY").write_text(old)
    monkeypatch.setenv(SECRETS_DIR, str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "from-the-variable")
    (tmp_path / "MLFLOW_TRACKING_PASSWORD").write_text("from-the-file")
    with isolated_environment(8000):
        settings = load_settings()
        assert settings.mlflow_tracking_uri == "http://mlflow:5000"
        options = settings.http_options(sends_request_id=False)
        keys = Keys(options.api_key, previous=options.api_key_previous, folder=options.api_key_folder)
        assert isinstance(keys.check(old.encode(), None), Key)
        (tmp_path / "API_KEY_PREVIOUS").write_text(old)
        (tmp_path / "API_KEY").write_text(new)
        keys.refresh()
        assert isinstance(keys.check(new.encode(), None), Key)
        assert isinstance(keys.check(old.encode(), None), Key)
        (tmp_path / "API_KEY_PREVIOUS").unlink()
        keys.refresh()
        assert keys.check(old.encode(), None) == "wrong"
        export_mlflow_secrets(settings)
        assert os.environ["MLFLOW_TRACKING_PASSWORD"] == "from-the-variable"


def test_the_pages_of_haproxy_are_bound_to_loopback_and_the_api_is_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "haproxy"
    program.write_text('#!/bin/sh\nexec echo "$@"\n')
    program.chmod(0o700)
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "1")
    monkeypatch.setattr("serve_app.rayserve.isolation._haproxy", lambda: str(program))
    ports = dict(zip(PAGE_PORTS, ("8404", "9101"), strict=True))
    for name, port in ports.items():
        monkeypatch.setenv(name, port)
    configuration = tmp_path / "haproxy.cfg"
    configuration.write_text("    bind :9101\n    bind *:8000\n  bind *:8404\n    bind *:84040\n")
    with isolated_environment(8000):
        command = [os.environ[HAPROXY], "-db", "-f", str(configuration), "-sf", "17"]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert output == f"-db -f {configuration} -sf 17\n"
    lines = configuration.read_text().split("\n")[:-1]
    assert [line.split()[1] for line in lines] == ["127.0.0.1:9101", "*:8000", "127.0.0.1:8404", "*:84040"]


def test_haproxy_logs_errors_alone_however_often_it_starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "1")
    monkeypatch.setattr("serve_app.rayserve.isolation._haproxy", lambda: "/bin/true")
    configuration = tmp_path / "haproxy.cfg"
    configuration.write_text("defaults\n    option log-health-checks\n    option httplog\n    balance leastconn\n")
    with isolated_environment(8000):
        for _ in range(2):
            subprocess.run([os.environ[HAPROXY], "-f", str(configuration)], check=True)
    options = [line.split()[1] for line in configuration.read_text().splitlines() if "option" in line]
    assert options == ["log-health-checks", "httplog", "dontlog-normal"]
