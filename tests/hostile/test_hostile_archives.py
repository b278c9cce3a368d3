"""Archives of a backup that an attacker made: none leaves its folder, fills the memory or changes what it cannot replace whole."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve_app.artifacts.archive import END, MAX_MANIFEST_BYTES, ArchiveError, Reader, tar_header, verify
from serve_app.artifacts.names import JOBLIB, MANIFEST
from serve_app.artifacts.store import BUNDLES, Store
from serve_app.errors import IrisApiError, StoreError
from tests.support.archives import (
    archive,
    first_section,
    forged,
    line,
    manifest_member,
    member,
    mlflow_folder,
    restore_store,
    runs_of,
    store_archive,
)
from tests.support.stores import publish, served, versions
from training import folder_archive, mlflow_archive

ESCAPES = (
    "../a",
    "a/../../b",
    "/etc/passwd",
    "a//b",
    "./a",
    "a/.",
    "..",
    ".",
    "",
    "a\0b",
    "a/",
    "x" * 300,
    "d/" * 3000 + "f",
    "\ud800",
)


def everything(folder: Path) -> dict[str, bytes | str]:
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """The folder that holds the target; nothing in it may change."""
    (tmp_path / "canary").write_text("untouched")
    (tmp_path / "target").mkdir()
    yield tmp_path
    assert (tmp_path / "canary").read_text() == "untouched"
    assert {path.name for path in tmp_path.iterdir()} <= {"canary", "target", "models", "source"}


@pytest.mark.parametrize("name", ESCAPES)
def test_no_name_leads_out_of_the_folder(name: str, outside: Path) -> None:
    raw = forged([line(name, b"evil")], b"")
    with pytest.raises(ArchiveError):
        folder_archive.restore(first_section(raw), outside / "target")
    assert everything(outside / "target") == {}


@pytest.mark.parametrize("kind", b"123456gxLKSVD")
def test_links_devices_and_other_entries_are_not_even_parsed(kind: int, outside: Path) -> None:
    body = bytearray(member("data/a", b""))
    body[156] = kind
    body[157:168] = b"/etc/passwd"
    total = sum(body[:148]) + 8 * 32 + sum(body[156:512])
    body[148:156] = b"%06o\0 " % total
    raw = forged([line("a", b"")], bytes(body))
    with pytest.raises(ArchiveError):
        folder_archive.restore(first_section(raw), outside / "target")
    assert not (outside / "target" / "a").is_symlink()


@pytest.mark.parametrize(
    "lines",
    [
        [line("a", b"1"), line("a", b"2")],
        [line("b", b"1"), line("a", b"2")],
        [{"name": "a", "size": -1, "sha256": "0" * 64}],
        [{"name": "a", "size": 2**70, "sha256": "0" * 64}],
        [{"name": "a", "size": True, "sha256": "0" * 64}],
        [{"name": "a", "size": 1, "sha256": "0" * 63}],
        [{"name": ["a"], "size": 1, "sha256": "0" * 64}],
        [{"name": "a" * 40_000, "size": 1, "sha256": "0" * 64}],
        [{"size": 1}],
    ],
)
def test_a_manifest_that_lies_is_refused_before_a_file_is_written(lines: list[dict[str, object]], outside: Path) -> None:
    with pytest.raises(ArchiveError):
        folder_archive.restore(first_section(forged(lines, member("data/a", b"1"))), outside / "target")
    assert everything(outside / "target") == {}


@pytest.mark.parametrize(
    "manifest",
    [
        b"",
        b"\n",
        b"[]\n",
        b"{}\n",
        b"[" * 30_000 + b"\n",
        b'{"format": "iris-api-backup/1", "part": "models"}\n',
        b"\xff\n",
        b"{" * 10_000_000,
    ],
)
def test_a_manifest_that_is_none_is_refused(manifest: bytes) -> None:
    with pytest.raises(ArchiveError):
        verify(io.BytesIO(manifest_member(manifest) + END))


def test_a_manifest_that_would_fill_the_memory_is_not_read() -> None:
    class Counted(io.BytesIO):
        asked = 0

        def read(self, size: int | None = -1) -> bytes:
            Counted.asked = max(Counted.asked, size or 0)
            return super().read(size)

    with pytest.raises(ArchiveError, match="more than"):
        verify(Counted(tar_header("manifests/data-" + "0" * 64 + ".jsonl", MAX_MANIFEST_BYTES + 1)))
    assert Counted.asked <= 512


def test_a_bomb_is_refused_by_its_size_before_the_first_byte(outside: Path) -> None:
    lines = [{"name": f"f{number}", "size": 2**50, "sha256": "0" * 64} for number in range(3)]
    with pytest.raises(StoreError, match="MB free"):
        folder_archive.restore(first_section(forged(lines)), outside / "target")
    assert everything(outside / "target").keys() <= {".restore.lock"}


def test_a_name_that_is_a_file_and_a_folder_is_refused(outside: Path) -> None:
    lines = [line("a", b"1"), line("a/b", b"2")]
    raw = forged(lines, member("data/a", b"1") + member("data/a/b", b"2"))
    with pytest.raises(ArchiveError):
        folder_archive.restore(first_section(raw), outside / "target")
    assert everything(outside / "target").keys() <= {".restore.lock"}


def test_a_wrong_digest_in_the_last_file_leaves_nothing_of_the_first(outside: Path) -> None:
    raw = forged([line("a", b"1"), line("b", b"2")], member("data/a", b"1") + member("data/b", b"!"))
    with pytest.raises(ArchiveError, match="digest"):
        folder_archive.restore(first_section(raw), outside / "target")
    assert everything(outside / "target").keys() <= {".restore.lock"}


def test_the_place_of_staging_is_no_way_out(outside: Path) -> None:
    (outside / "target" / ".restore").symlink_to(outside)
    with pytest.raises(OSError, match="exists"):
        folder_archive.restore(first_section(archive({"canary": b"evil"})), outside / "target", merge=True)
    assert (outside / "canary").read_text() == "untouched"


# --- the store


@pytest.fixture
def running(outside: Path) -> Store:
    store = Store(outside / "models")
    publish(store, "own")
    return store


@pytest.mark.parametrize(
    "name",
    [
        "current",
        ".lock",
        "bundles/x",
        f"bundles/1-{'0' * 64}",
        f"bundles/1-{'0' * 64}/a/b",
        "bundles/.hidden/a",
        ".restore/a",
        "evil/a",
        "x",
    ],
)
def test_nothing_but_bundles_and_known_files_enters_a_store(name: str, running: Store) -> None:
    before = everything(running.root)
    raw = forged([line(name, b"evil")], member(f"models/{name}", b"evil"), part="models", details={"pointer": None})
    with pytest.raises(ArchiveError, match="belong"):
        restore_store(raw, running, merge=True)
    assert everything(running.root) == before


@pytest.mark.parametrize("pointer", ["bundles/../../x", "/etc", f"bundles/7-{'0' * 64}", "plain:x", 7, ["a"], {}])
def test_a_pointer_that_leads_elsewhere_is_refused(pointer: object, running: Store) -> None:
    before = everything(running.root)
    with pytest.raises(IrisApiError):
        restore_store(forged([], part="models", details={"pointer": pointer}), running, merge=True)
    assert everything(running.root) == before


def test_a_bundle_that_is_not_what_its_name_says_leaves_the_store_as_it_was(tmp_path: Path, running: Store) -> None:
    source = Store(tmp_path / "source")
    publish(source, "first")
    second = publish(source, "second")
    raw = store_archive(source)
    for file in (JOBLIB, MANIFEST, "unlisted.py"):
        forgery = Store(tmp_path / "target")
        files = dict(_files(raw))
        files[f"{BUNDLES}/{second.folder.name}/{file}"] = b"evil"
        evil = archive(files, part="models", details={"pointer": f"{BUNDLES}/{second.folder.name}"})
        with pytest.raises(StoreError, match="damaged"):
            restore_store(evil, forgery)
        assert (forgery.pointer(), forgery.entries()) == (None, [])
    assert (versions(running), served(running)) == ([1], "own")


def _files(raw: bytes) -> Iterator[tuple[str, bytes]]:
    for section in Reader(io.BytesIO(raw)).sections():
        for file, pieces in section.files():
            yield file.name, b"".join(pieces)


# --- MLflow


@pytest.mark.parametrize(
    ("files", "extra"),
    [
        ({"mlflow.db": b"SQLite format 3\0" + bytes(4000)}, ""),
        ({"mlflow.db": b"no database"}, ""),
        ({}, ""),
        ({"other.db": b"x"}, ""),
        ({"artifacts.py": b"x"}, ""),
        (None, "DROP TABLE runs; CREATE VIEW runs AS SELECT name AS run FROM experiments;"),
        (None, "CREATE VIRTUAL TABLE evil USING fts5(a);"),
    ],
)
def test_a_database_that_is_none_of_mlflow_leaves_mlflow_as_it_was(
    files: dict[str, bytes] | None, extra: str, tmp_path: Path
) -> None:
    live = mlflow_folder(tmp_path / "live")
    if files is None:
        files = {"mlflow.db": (mlflow_folder(tmp_path / "evil", extra=extra) / "mlflow.db").read_bytes()}
    before = everything(live)
    with pytest.raises(IrisApiError):
        mlflow_archive.restore(first_section(archive(files, part="mlflow")), live)
    after = everything(live)
    after.pop(".restore.lock", None)
    assert after == before


def test_a_database_with_a_broken_page_is_refused(tmp_path: Path) -> None:
    source = mlflow_folder(tmp_path / "source", runs=["r"])
    with contextlib.closing(sqlite3.connect(source / "mlflow.db")) as connection:
        connection.executescript("CREATE TABLE filler (x); INSERT INTO filler VALUES (zeroblob(50000));")
    data = bytearray((source / "mlflow.db").read_bytes())
    data[-4096:] = os.urandom(4096)
    data[8192:12288] = os.urandom(4096)
    live = mlflow_folder(tmp_path / "live")
    with pytest.raises(IrisApiError):
        mlflow_archive.restore(first_section(archive({"mlflow.db": bytes(data)}, part="mlflow")), live)
    assert runs_of(live) == []


def test_text_of_an_archive_is_printed_without_its_control_characters() -> None:
    with pytest.raises(ArchiveError) as error:
        verify(io.BytesIO(forged([], format="\x1b]0;evil\x07" + json.dumps("x"))))
    assert "\x1b" not in str(error.value)
