from __future__ import annotations

import contextlib
import io
import os
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.artifacts.archive import END, ArchiveError, FileChanged, Reader, Source, verify, write_section
from tests.support.archives import archive, forged, line, member, source

LONG = "/".join(["d" * 120] * 3)
FILES = {"a.csv": b"1,2\n", "empty": b"", f"{LONG}/é\udcff.bin": bytes(range(256)) * 5000, "b/c": b"x" * 512}


def contents(raw: bytes) -> dict[str, bytes]:
    return {
        f"{section.part}/{file.name}": b"".join(pieces)
        for section in Reader(io.BytesIO(raw)).sections()
        for file, pieces in section.files()
    }


def test_what_was_written_is_read_whatever_its_name_and_size() -> None:
    assert contents(archive(FILES)) == {f"data/{name}": data for name, data in FILES.items()}


@contextlib.contextmanager
def open_stream(raw: bytes) -> Iterator[BinaryIO]:
    """A pipe with these bytes whose writing end stays open."""
    assert len(raw) < 65536  # what a pipe holds
    read, write = os.pipe()
    with open(read, "rb", buffering=0) as stream, open(write, "wb", buffering=0) as sender:
        sender.write(raw)
        yield stream


def test_a_stream_that_stays_open_ends_with_its_archive() -> None:
    with open_stream(archive({"a.csv": b"1,2\n"})) as stream:
        assert [section.summary.files for section in Reader(stream, open_ended=True).sections()] == [1]


def test_a_second_archive_in_a_stream_that_stays_open_is_refused() -> None:
    with open_stream(2 * archive({"a.csv": b"1,2\n"})) as stream, pytest.raises(ArchiveError):
        list(Reader(stream, open_ended=True).sections())


names = st.text(st.characters(exclude_characters="\0/", exclude_categories=["Cs"]), min_size=1, max_size=60)


@given(st.dictionaries(names.filter(lambda name: name not in (".", "..")), st.binary(max_size=2000), max_size=5))
def test_any_files_come_back(files: dict[str, bytes]) -> None:
    assert contents(archive(files)) == {f"data/{name}": data for name, data in files.items()}


def test_any_program_for_tar_files_reads_an_archive(tmp_path: Path) -> None:
    raw = archive(FILES)
    with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
        assert {info.name for info in tar if not info.name.startswith("manifests/data-")} == {f"data/{name}" for name in FILES}
        assert all(info.isfile() and info.mode == 0o600 for info in tar)
    subprocess.run(["tar", "xf", "-", "-C", str(tmp_path)], input=raw, check=True)
    assert {name: (tmp_path / "data" / name).read_bytes() for name in FILES} == FILES


def test_a_file_of_more_than_eight_gigabytes_has_a_header_that_tar_reads() -> None:
    from serve_app.artifacts.archive import tar_header

    info = tarfile.TarInfo.frombuf(tar_header("data/big", 9 * 2**30), "utf-8", "strict")
    assert (info.name, info.size) == ("data/big", 9 * 2**30)


def test_the_sections_of_an_archive_can_be_taken_out_by_their_positions() -> None:
    out = io.BytesIO()
    for part in ("models", "data"):
        write_section(out, part, [source("a", part.encode())], {"part": part})
    raw = out.getvalue() + END
    models, data = verify(io.BytesIO(raw))
    assert contents(raw[data.start : data.end] + END) == {"data/a": b"data"}
    assert (models.start, models.end, data.details) == (0, data.start, {"part": "data"})


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 3000])
def test_an_archive_that_was_cut_off_anywhere_is_refused(size: int) -> None:
    raw = archive({"a": b"y" * 700, "b": b"z"})
    assert len(verify(io.BytesIO(raw))) == 1
    with pytest.raises(ArchiveError):
        verify(io.BytesIO(raw[: len(raw) - 1 - size]))


@pytest.mark.parametrize("position", range(0, 4096, 37))
def test_one_wrong_byte_anywhere_is_found(position: int) -> None:
    raw = bytearray(archive({"a": b"y" * 700, "b": b"z"}))
    raw[position % len(raw)] ^= 0x10
    with pytest.raises(ArchiveError):
        verify(io.BytesIO(bytes(raw)))


def test_a_file_that_changes_while_it_is_copied_ends_the_backup() -> None:
    first = source("a", b"before")
    for data in (b"after!", b"before and more", b"be"):
        with pytest.raises(FileChanged):
            write_section(io.BytesIO(), "data", [Source(first.line, lambda data=data: [data])], {})  # type: ignore[misc]

    def gone() -> list[bytes]:
        raise FileNotFoundError

    with pytest.raises(FileChanged):
        write_section(io.BytesIO(), "data", [Source(first.line, gone)], {})


def test_an_archive_of_another_format_names_the_release_to_use() -> None:
    with pytest.raises(ArchiveError, match="release"):
        verify(io.BytesIO(forged([], format="iris-api-backup/9")))


@pytest.mark.parametrize("raw", [b"", b"PK\x03\x04" + bytes(600), END, bytes(512) + b"x" * 512, archive({}) + b"more"])
def test_what_is_no_archive_is_refused(raw: bytes) -> None:
    with pytest.raises(ArchiveError):
        verify(io.BytesIO(raw))


def test_a_part_stands_in_an_archive_once() -> None:
    raw = archive({"a": b"1"})[: -len(END)]
    with pytest.raises(ArchiveError, match="twice"):
        verify(io.BytesIO(raw + raw + END))


def test_an_entry_that_the_manifest_does_not_list_is_refused() -> None:
    assert len(verify(io.BytesIO(forged([line("a", b"1")], member("data/a", b"1"))))) == 1
    with pytest.raises(ArchiveError):
        verify(io.BytesIO(forged([line("a", b"1")], member("data/a", b"1") + member("data/b", b"2"))))
