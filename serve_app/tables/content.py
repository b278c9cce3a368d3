"""The content of a text file: unpacked, in UTF-8, with lines that end in LF.

The functions read a plain file directly. They unpack and recode any other file once, into a temporary file with a size limit.
"""

from __future__ import annotations

import bz2
import codecs
import contextlib
import gzip
import lzma
import os
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import pyarrow as pa

from serve_app.errors import UsageError
from serve_app.tables.location import Location, translate_errors

BLOCK = 1 << 20
"""Bytes of one read."""

MAX_UNPACKED = 8 << 30
"""Maximum size of an unpacked file, in bytes."""

MAX_RATIO, FREE_BYTES = 250, 256 << 20
"""An unpacked file of more than FREE_BYTES bytes may have at most MAX_RATIO times the size of its packed form."""

Compression = Literal["none", "gzip", "zip", "zstd", "bzip2", "xz"]

_PACKED: dict[bytes, Compression] = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip",
    b"PK\x05\x06": "zip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
}
_FOREIGN = {
    b"7z\xbc\xaf": "is packed with 7-Zip: unpack it",
    b"\xd0\xcf\x11\xe0": "is a document of Microsoft Office: save the sheet as CSV",
    b"%PDF": "is a PDF document: save the table as CSV",
    b"SQLite format 3": "is an SQLite database: export the table as CSV",
    b"PAR1": "is a Parquet file among CSV files: name only files of one kind",
}


@dataclass(frozen=True, slots=True)
class TextForm:
    """The form of a text file: its compression, its encoding, and whether its lines end in only CR."""

    compression: Compression = "none"
    encoding: str = "utf-8"
    carriage: bool = False

    @property
    def plain(self) -> bool:
        """Whether the file can be read directly."""
        return self == PLAIN


PLAIN = TextForm()


def compression_of(head: bytes, name: str) -> Compression:
    """The compression according to the first bytes of a file; raises UsageError for formats of other programs."""
    for mark, complaint in _FOREIGN.items():
        if head.startswith(mark):
            raise UsageError(f"{name} {complaint}")
    if head[257:262] == b"ustar":
        raise UsageError(f"{name} is a tar archive: unpack it")
    return next((kind for mark, kind in _PACKED.items() if head.startswith(mark)), "none")


def read_head(location: Location, path: str, compression: Compression, size: int) -> tuple[bytes, bool]:
    """The first `size` bytes of the unpacked file, and whether these are all bytes."""
    with translate_errors(path), location.filesystem.open_input_file(path) as file:
        stream = _unpacked(file, compression, path)
        head = b""
        with _packing_errors(path):
            while len(head) <= size and (block := stream.read(size + 1 - len(head))):
                head += block
    return head[:size], len(head) <= size


def open_content(location: Location, path: str, form: TextForm) -> Any:
    """The content as a pyarrow file with random access. Raises UsageError when it cannot be unpacked or decoded."""
    if form.plain:
        return location.filesystem.open_input_file(path)
    info = location.filesystem.get_file_info(path)
    return pa.BufferReader(_copy(location, path, form, info.size, info.mtime_ns))


@lru_cache(maxsize=2)
def _copy(location: Location, path: str, form: TextForm, size: int, _stamp: int | None) -> pa.Buffer:
    """The content in a temporary file without a name, which disappears with the buffer or the process."""
    limit, written = min(MAX_UNPACKED, max(FREE_BYTES, MAX_RATIO * size)), 0
    handle, name = tempfile.mkstemp(prefix="iris-api-table-")
    try:
        with translate_errors(path), location.filesystem.open_input_file(path) as file, open(handle, "wb") as target:
            for block in _recoded(_unpacked(file, form.compression, path), form, path):
                written += target.write(block)
                if written > limit:
                    raise UsageError(f"{path} unpacks to more than {limit >> 20} MiB: split it, or save it as Parquet")
        if not written:
            raise UsageError(f"{path} is empty: it needs a header line and rows")
        return pa.memory_map(name).read_buffer()
    finally:
        os.unlink(name)


def _recoded(stream: Any, form: TextForm, path: str) -> Iterator[bytes]:
    """Blocks of UTF-8 text whose lines end in LF."""
    decoder = codecs.getincrementaldecoder(form.encoding)()
    same = codecs.lookup(form.encoding).name == "utf-8"
    while True:
        with _packing_errors(path):
            raw = stream.read(BLOCK)
        try:
            block = raw if same else decoder.decode(raw, final=not raw).encode()
        except UnicodeError:
            raise UsageError(f"{path} is not text in {form.encoding}: name its encoding with --encoding") from None
        yield block.replace(b"\r", b"\n") if form.carriage else block
        if not raw:
            return


def _unpacked(file: Any, compression: Compression, path: str) -> Any:
    """The unpacked bytes as a stream."""
    if compression == "none":
        return file
    if compression in _STREAMS:
        return _STREAMS[compression](file)
    with _packing_errors(path):
        archive = zipfile.ZipFile(file)
        members = [info for info in archive.infolist() if not info.is_dir() and not _hidden(info.filename)]
        if any(info.filename == "[Content_Types].xml" for info in members):
            raise UsageError(f"{path} is a workbook of Excel: save the sheet as CSV")
        if len(members) != 1:
            raise UsageError(f"{path} holds {len(members)} files: pack one table into it, or unpack it and name the table")
        return archive.open(members[0])


_STREAMS: dict[Compression, Callable[[Any], Any]] = {
    "gzip": lambda file: gzip.GzipFile(fileobj=file),
    "zstd": lambda file: pa.CompressedInputStream(file, "zstd"),
    "bzip2": bz2.BZ2File,
    "xz": lzma.LZMAFile,
}


def _hidden(name: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in name.split("/"))


@contextlib.contextmanager
def _packing_errors(path: str) -> Iterator[None]:
    """Turn the errors of a broken archive into UsageError."""
    broken = (
        gzip.BadGzipFile,
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
        EOFError,
        NotImplementedError,
        RuntimeError,
        pa.ArrowInvalid,
    )
    try:
        yield
    except broken as error:
        raise UsageError(f"{path} cannot be unpacked ({' '.join(str(error).split())[:100]}): copy or pack it again") from None
    except OSError as error:
        if error.errno is not None:  # an error of the filesystem, not of the archive
            raise
        raise UsageError(f"{path} cannot be unpacked ({' '.join(str(error).split())[:100]}): copy or pack it again") from None
