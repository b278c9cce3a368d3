from __future__ import annotations

import logging
import os

import pytest
import yaml

from serve_app.rayserve import flags
from serve_app.rayserve.flags import (
    FILE,
    ONE_MACHINE,
    missing_flags,
    read_flags,
    set_flags,
    set_one_machine_flags,
    warn_about_missing_flags,
)

HOOK = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment without a flag; what a test sets is undone."""
    for name in read_flags():
        monkeypatch.setenv(name, "to be restored")
        monkeypatch.delenv(name)
    return monkeypatch


def test_a_flag_that_the_user_has_set_stays_and_is_not_missing(bare: pytest.MonkeyPatch) -> None:
    bare.setenv("RAY_SERVE_HAPROXY_NBTHREAD", "2")
    assert set(missing_flags()) == set(read_flags()) - {"RAY_SERVE_HAPROXY_NBTHREAD"}
    set_flags()
    assert missing_flags() == []
    environment = os.environ
    assert environment["RAY_SERVE_HAPROXY_NBTHREAD"] == "2"
    assert environment[HOOK] == "serve_app.rayserve.ingress_hook:middlewares"


def test_haproxy_is_left_out_where_it_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_flags()["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
    monkeypatch.setattr("sys.platform", "darwin")
    assert read_flags()["RAY_SERVE_ENABLE_HA_PROXY"] == "0"


def test_a_replica_without_flags_says_so_once_with_the_command_that_has_them(
    bare: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bare.setattr(logging.getLogger("iris_api"), "propagate", True)
    warn_about_missing_flags()
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert flags.FAST in record.getMessage()
    set_flags()
    warn_about_missing_flags()
    bare.delenv("MALLOC_ARENA_MAX")  # costs no request anything
    warn_about_missing_flags()
    assert len(caplog.records) == 1


def test_the_config_file_for_serve_run_gives_the_controller_the_same_flags() -> None:
    config = yaml.safe_load(FILE.with_name("serve.yaml").read_text())
    assert config["controller_options"]["runtime_env"]["env_vars"] == read_flags()
    assert flags.FAST.endswith("serve_app/rayserve/serve.yaml")


def test_one_machine_has_flags_of_its_own_which_the_user_may_set(bare: pytest.MonkeyPatch) -> None:
    for name in ONE_MACHINE:
        bare.setenv(name, "to be restored")
        bare.delenv(name)
    bare.setenv("RAY_SERVE_CONTROL_LOOP_INTERVAL_S", "1.5")
    set_one_machine_flags()
    assert missing_flags() == []
    expected = {**read_flags(), **ONE_MACHINE, "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "1.5"}
    assert {name: os.environ[name] for name in expected} == expected
