"""`iris-api backup` and `restore`, as a user runs them, and the parts beside the store."""

from __future__ import annotations

import contextlib
import io
import os
import sqlite3
import stat
import threading
import time
from pathlib import Path

import pytest

from serve_app.artifacts.archive import END, FileChanged, verify, write_section
from serve_app.artifacts.store import Store
from serve_app.cli import main
from serve_app.errors import StoreError
from tests.support.archives import first_section, mlflow_folder, runs_of
from tests.support.hostile.signatures import key_pair
from tests.support.models import publish_iris
from tests.support.stores import publish, served, versions
from training import folder_archive, mlflow_archive


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a store, MLflow's files and a folder of tables."""
    for name in ("MODEL_DIR", "IRIS_VERIFY_KEY", "IRIS_PREDICTOR", "IRIS_ALLOW_JOBLIB"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    store = Store("models")
    for _ in range(2):
        publish_iris(store)
    mlflow_folder(Path(), runs=["r1", "r2"])
    Path("tables/in").mkdir(parents=True)
    Path("tables/in/t.csv").write_text("a,b\n1,2\n")
    old(Path())
    return tmp_path


def old(folder: Path) -> None:
    """Let every file be old enough to be read at once."""
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            os.utime(path, (1, 1))


def test_one_command_backs_up_what_is_there_and_one_restores_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = str(home / "all.tar")
    assert main(["backup", archive, "--data-dir", "tables"]) == 0
    assert stat.S_IMODE(os.stat(archive).st_mode) == 0o600
    with open(archive, "rb") as file:
        assert [summary.part for summary in verify(file)] == ["models", "mlflow", "data"]
    (home / "new").mkdir()
    monkeypatch.chdir(home / "new")
    assert main(["restore", archive, "--data-dir", "tables"]) == 0
    assert [(one.version, one.digest, one.served) for one in Store("models").entries()] == [
        (one.version, one.digest, one.served) for one in Store(home / "home" / "models").entries()
    ]
    assert runs_of(Path()) == ["r1", "r2"]
    assert Path("artifacts/1/r2/artifacts/model.onnx").read_bytes() == b"r2"
    assert Path("tables/in/t.csv").read_text() == "a,b\n1,2\n"


def test_a_second_restore_is_refused_before_anything_is_changed(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = str(home / "all.tar")
    assert main(["backup", archive]) == 0
    publish(Store(home / "new" / "models"), "own")
    monkeypatch.chdir(home / "new")
    capsys.readouterr()
    assert main(["restore", archive]) == 1
    assert "--merge" in capsys.readouterr().err
    assert not Path("mlflow.db").exists()
    assert served(Store("models")) == "own"


def test_parts_are_chosen_and_an_absent_one_is_wrong_usage(home: Path) -> None:
    archive = str(home / "models.tar")
    assert main(["backup", archive, "--part", "models"]) == 0
    assert main(["restore", archive, "--part", "mlflow"]) == 2
    assert main(["backup", archive]) == 2  # it exists
    assert main(["backup", str(home / "x.tar"), "--part", "data"]) == 2
    assert main(["backup", str(home / "y.tar"), "--part", "mlflow", "--mlflow-dir", "nowhere"]) == 2
    assert sorted(path.name for path in home.iterdir()) == ["home", "models.tar"]


def test_a_backup_that_fails_leaves_no_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("training.backup_command.write_section", broken)
    assert main(["backup", str(home / "all.tar")]) == 1
    assert [path.name for path in home.iterdir()] == ["home"]


def test_a_damaged_archive_is_refused_before_anything_is_changed(home: Path) -> None:
    archive = home / "all.tar"
    assert main(["backup", str(archive)]) == 0
    data = bytearray(archive.read_bytes())
    data[-3000] ^= 1
    archive.write_bytes(data)
    assert main(["restore", str(archive), "--model-dir", str(home / "new"), "--mlflow-dir", str(home / "new")]) == 1
    assert not (home / "new").exists()


def test_a_folder_keeps_the_newest_archives(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = home / "backups"
    folder.mkdir()
    for name in ("iris-api-20200101T000000Z.tar", "iris-api-20200102T000000Z.tar", "notes.txt"):
        (folder / name).write_bytes(b"")
    assert main(["backup", str(folder), "--keep", "2"]) == 0
    names = sorted(path.name for path in folder.iterdir())
    assert len(names) == 3
    assert names[0] == "iris-api-20200102T000000Z.tar"
    assert names[2] == "notes.txt"


def test_a_model_that_is_not_signed_with_the_key_here_is_not_restored(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = str(home / "all.tar")
    assert main(["backup", archive, "--part", "models"]) == 0
    _, public = key_pair(home, "publisher")
    assert main(["restore", archive, "--model-dir", str(home / "new"), "--verify-key", str(public)]) == 1
    assert "version 2" in capsys.readouterr().err
    assert Store(home / "new").entries() == []


# --- MLflow


def test_the_copy_of_a_database_in_use_is_one_moment_of_it(tmp_path: Path) -> None:
    folder = mlflow_folder(tmp_path / "live")
    stop = threading.Event()

    def write_pairs() -> None:
        with contextlib.closing(sqlite3.connect(folder / "mlflow.db", timeout=60)) as connection:
            number = 0
            while not stop.is_set():
                connection.execute("INSERT INTO runs VALUES (?)", (f"r{number}",))
                connection.execute("INSERT INTO model_versions VALUES (?)", (f"r{number}",))
                connection.commit()
                number += 1
                time.sleep(0.001)

    writer = threading.Thread(target=write_pairs)
    writer.start()
    try:
        for _ in range(5):
            with mlflow_archive.snapshot(folder) as (_, details):
                assert details["runs"] == details["registered_versions"]
    finally:
        stop.set()
        writer.join()
    assert runs_of(folder)


def test_a_database_is_replaced_under_a_process_that_has_it_open(tmp_path: Path) -> None:
    source, live = mlflow_folder(tmp_path / "source", runs=["r1"]), mlflow_folder(tmp_path / "live")
    old(source)
    out = io.BytesIO()
    with mlflow_archive.snapshot(source) as (sources, details):
        write_section(out, "mlflow", sources, details)
    with contextlib.closing(sqlite3.connect(live / "mlflow.db")) as server:
        assert server.execute("SELECT COUNT(*) FROM runs").fetchone() == (0,)
        outcome = mlflow_archive.restore(first_section(out.getvalue() + END), live)
        assert outcome is not None
        assert outcome.added == 1
        assert server.execute("SELECT run FROM runs").fetchall() == [("r1",)]


def test_a_database_of_another_schema_is_refused(tmp_path: Path) -> None:
    source, live = mlflow_folder(tmp_path / "source", runs=["r1"], schema="a2"), mlflow_folder(tmp_path / "live")
    old(source)
    out = io.BytesIO()
    with mlflow_archive.snapshot(source) as (sources, details):
        write_section(out, "mlflow", sources, details)
    with pytest.raises(StoreError, match="schema a2"):
        mlflow_archive.restore(first_section(out.getvalue() + END), live)
    assert runs_of(live) == []
    assert not (live / "artifacts").exists()


# --- a folder


def test_a_file_that_is_being_written_is_waited_for(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text("half")
    finish = threading.Timer(0.3, lambda: file.write_text("whole"))
    finish.start()
    (source,) = folder_archive.snapshot(tmp_path)
    assert b"".join(source.pieces()) == b"whole"


def test_a_file_that_is_written_all_the_time_ends_the_backup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_archive, "SETTLING_SECONDS", -1.0)
    (tmp_path / "log").write_text("x")
    with pytest.raises(FileChanged):
        folder_archive.snapshot(tmp_path)


def test_merge_keeps_the_files_that_are_there(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    for folder, names in ((source, "ab"), (target, "bc")):
        folder.mkdir()
        for name in names:
            (folder / name).write_text(f"{folder.name} {name}")
    (source / "link").symlink_to("/etc/passwd")
    old(source)
    out = io.BytesIO()
    write_section(out, "data", folder_archive.snapshot(source), {})
    raw = out.getvalue() + END
    with pytest.raises(StoreError, match="--merge"):
        folder_archive.restore(first_section(raw), target)
    outcome = folder_archive.restore(first_section(raw), target, merge=True)
    assert (outcome.added, outcome.existing) == (1, 1)
    texts = {path.name: path.read_text() for path in target.iterdir() if not path.name.startswith(".")}
    assert texts == {"a": "source a", "b": "target b", "c": "target c"}


def test_versions_of_a_store_are_added_by_merge(home: Path) -> None:
    archive = str(home / "all.tar")
    assert main(["backup", archive, "--part", "models"]) == 0
    assert main(["restore", archive, "--merge"]) == 0
    assert versions(Store("models")) == [1, 2]
