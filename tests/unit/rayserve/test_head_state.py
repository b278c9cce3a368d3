"""The folders in which Ray's heads keep their state, on a volume that they share."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from serve_app.rayserve import head_state

NOW = 1_800_000_000.0
DAY = 24 * 3600.0


def state_of(volume: Path, cluster: str, *, age: float) -> Path:
    """A state that was last written `age` seconds before NOW."""
    state = volume / cluster / "state"
    (state / "kv").mkdir(parents=True)
    for name in ("kv/LOCK", "kv/CURRENT", "session_name"):
        (state / name).write_text("x")
        os.utime(state / name, (NOW - age, NOW - age))
    return state


def test_the_state_of_this_cluster_stays_whatever_its_age(tmp_path: Path) -> None:
    state = state_of(tmp_path, "iris-api-a", age=9 * DAY)
    assert head_state.prepare(state, now=NOW) is None
    assert (state / "kv" / "CURRENT").is_file()


def test_of_other_clusters_only_a_state_without_changes_for_a_day_is_removed(tmp_path: Path) -> None:
    old, new = state_of(tmp_path, "iris-api-old", age=2 * DAY), state_of(tmp_path, "iris-api-new", age=DAY / 2)
    message = head_state.prepare(tmp_path / "iris-api-own" / "state", now=NOW)
    assert message is not None
    assert "iris-api-old" in message
    assert (old.parent.exists(), new.parent.exists()) == (False, True)


def test_an_old_state_that_another_process_has_open_is_not_removed(tmp_path: Path) -> None:
    state = state_of(tmp_path, "iris-api-other", age=2 * DAY)
    program = (
        "import fcntl, sys; file = open(sys.argv[1], 'r+b'); fcntl.lockf(file, fcntl.LOCK_EX); "
        "print('locked', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(state / "kv" / "LOCK")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        os.utime(state / "kv" / "LOCK", (NOW - 2 * DAY, NOW - 2 * DAY))
        assert head_state.prepare(tmp_path / "iris-api-own" / "state", now=NOW) is None
        holder.communicate()
    assert state.exists()
    assert head_state.prepare(tmp_path / "iris-api-own" / "state", now=NOW) is not None
    assert not state.exists()


def test_a_state_with_which_the_head_did_not_start_three_times_is_emptied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = state_of(tmp_path, "iris-api-a", age=0)
    monkeypatch.setenv("RAY_gcs_storage_path", str(state))
    assert [head_state.prepare(state, now=NOW) for _ in range(3)] == [None] * 3
    assert state.exists()
    message = head_state.prepare(state, now=NOW)
    assert message is not None
    assert "3 times" in message
    assert not state.exists()


def test_a_head_that_has_started_ends_the_counting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = state_of(tmp_path, "iris-api-a", age=0)
    monkeypatch.setenv("RAY_gcs_storage_path", str(state))
    for _ in range(5):
        assert head_state.prepare(state, now=NOW) is None
        head_state.head_started()
    assert state.exists()


@pytest.mark.parametrize("path", ["", "/proc/no-such-volume/iris-api-a/state"])
def test_without_a_volume_that_can_be_written_the_head_is_started_all_the_same(
    path: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_gcs_storage_path", path)
    head_state.main()
    assert ("cannot be prepared" in capsys.readouterr().out) == bool(path)


def test_the_folder_is_prepared_by_the_command_of_the_init_container(tmp_path: Path) -> None:
    state = state_of(tmp_path, "iris-api-a", age=0)
    old = state_of(tmp_path, "iris-api-b", age=0)
    for path in old.rglob("*"):
        os.utime(path, (0, 0))
    command = [sys.executable, "-m", "serve_app.rayserve.head_state"]
    output = subprocess.run(
        command, env={**os.environ, "RAY_gcs_storage_path": str(state)}, capture_output=True, text=True, check=True
    ).stdout
    assert "iris-api-b" in output
    assert (state.parent / "starts").read_text() == "1"
