"""Applications on one machine share no port and no file of HAProxy, unless their user has set the same ones."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from serve_app.rayserve.isolation import FILES, FREE_PORTS, MAX_PORT, MIN_PORT, isolated_environment


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*FREE_PORTS, MIN_PORT, MAX_PORT, *FILES):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)


def environment_of(port: int) -> dict[str, str]:
    before = dict(os.environ)
    with isolated_environment(port):
        environment = {name: value for name, value in os.environ.items() if before.get(name) != value}
    os.environ.clear()
    os.environ.update(before)
    return environment


def test_two_applications_share_nothing() -> None:
    one, other = environment_of(8000), environment_of(8001)
    assert set(one) == set(other) == {*FREE_PORTS, MIN_PORT, MAX_PORT, *FILES}
    assert not set(one.values()) & set(other.values())
    assert len({one[name] for name in FREE_PORTS}) == len(FREE_PORTS)
    blocks = [range(int(environment[MIN_PORT]), int(environment[MAX_PORT]) + 1) for environment in (one, other)]
    assert not set(blocks[0]) & set(blocks[1])
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
