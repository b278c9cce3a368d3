from __future__ import annotations

from pathlib import Path

import pytest

from serve_app.artifacts.durable import discard, link_of, replace_file, replace_link, write_file


def test_a_file_is_written_once_and_never_again(tmp_path: Path) -> None:
    write_file(tmp_path / "a", b"bytes")
    assert (tmp_path / "a").read_bytes() == b"bytes"
    assert (tmp_path / "a").stat().st_mode & 0o222 == 0
    with pytest.raises(FileExistsError):
        write_file(tmp_path / "a", b"other")


def test_a_link_is_made_and_replaced_without_a_trace(tmp_path: Path) -> None:
    assert link_of(tmp_path / "current") is None
    for target in ("one", "two"):
        replace_link(tmp_path / "current", target)
        assert link_of(tmp_path / "current") == target
    assert [path.name for path in tmp_path.iterdir()] == ["current"]


def test_a_link_that_cannot_get_its_name_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "current").mkdir()
    with pytest.raises(IsADirectoryError):
        replace_link(tmp_path / "current", "one")
    assert [path.name for path in tmp_path.iterdir()] == ["current"]


def test_a_discarded_folder_is_gone_and_one_that_never_was_is_no_matter(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").touch()
    discard(tmp_path / "a")
    discard(tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "folder" / "keys.json"
    replace_file(path, b"old")
    synced: list[Path] = []
    monkeypatch.setattr("serve_app.artifacts.durable.sync_folder", synced.append)
    replace_file(path, b"new")
    assert (path.read_bytes(), synced) == (b"new", [path.parent])

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        replace_file(path, b"half")
    assert path.read_bytes() == b"new"
    assert [file.name for file in path.parent.iterdir()] == [path.name]
