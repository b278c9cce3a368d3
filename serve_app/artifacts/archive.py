"""The archive of a backup: a tar file in sections, one for each part (models, mlflow, data).

    manifests/models-<sha256>.jsonl   a first line about the section, then one line for each file: name, size and sha256
    models/bundles/...                the files, in the order of the lines, which is the order of their names
    manifests/mlflow-<sha256>.jsonl
    ...

The name of a manifest contains its digest, and the manifest contains the digests of the files. The reader checks every byte.

Any program that reads tar files can list and unpack an archive. This reader does not interpret the headers: it computes each
header from the lines and compares the bytes. An archive therefore cannot contain a link, a device, a second file of the same name
or a name that leads out of its folder. The reader knows the sizes of all files before it reads the first one.

The module uses only the standard library, because `make k8s-backup` runs without the packages of the application.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import re
import select
import struct
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from serve_app.errors import IrisApiError
from serve_app.printable import printable

FORMAT = "iris-api-backup/1"
PIECE_BYTES = 1024 * 1024
"""Bytes in memory while a file is copied."""
MAX_MANIFEST_BYTES = 64 * 1024 * 1024
MAX_LINE_BYTES = 32 * 1024
MAX_NAME_BYTES = 4096
MAX_COMPONENT_BYTES = 255
MAX_SIZE = 2**62

_BLOCK = 512
END = bytes(2 * _BLOCK)
"""The end of a tar file; an archive without it is truncated."""
LATE_SECONDS = 0.5
_MANIFEST = re.compile(rb"manifests/([a-z]{1,16})-([0-9a-f]{64})\.jsonl")
_LONG_NAME = b"././@LongLink"
_NAME_FIELD = 100
_DIGEST = re.compile(r"[0-9a-f]{64}")


class ArchiveError(IrisApiError):
    """The bytes are not a complete archive of this format, or they changed after they were written."""


class FileChanged(IrisApiError):
    """A file changed or was removed while the command copied it into an archive."""


@dataclass(frozen=True, slots=True)
class FileLine:
    """One file of a section; `name` is relative to the folder of its part."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Source:
    """A file to archive. Each call of `pieces` yields its bytes from the start."""

    line: FileLine
    pieces: Callable[[], Iterable[bytes]]


@dataclass(frozen=True, slots=True)
class Summary:
    """One section: its contents, and the offsets of its start and end in the archive."""

    part: str
    created: str
    files: int
    bytes: int
    details: Mapping[str, Any]
    manifest_sha256: str
    start: int = 0
    end: int = 0


# --- writing


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A file that only its owner may read; it gets its name when the block ends without an error. Raises OSError."""
    aside = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        with open(os.open(aside, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600), "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        aside.rename(path)
    finally:
        aside.unlink(missing_ok=True)


def hashed(name: str, pieces: Callable[[], Iterable[bytes]]) -> Source:
    """A source with the current size and digest of its bytes."""
    digest, size = hashlib.sha256(), 0
    for piece in pieces():
        digest.update(piece)
        size += len(piece)
    return Source(FileLine(name, size, digest.hexdigest()), pieces)


def write_section(
    out: BinaryIO,
    part: str,
    sources: Sequence[Source],
    details: Mapping[str, Any],
    *,
    copied: Callable[[int], object] = lambda _: None,
) -> Summary:
    """Write one section; it calls `copied` with the number of bytes after each piece.

    Raises FileChanged when the bytes of a file differ from those that were hashed; the output is unusable then.
    """
    ordered = sorted(sources, key=lambda source: os.fsencode(source.line.name))
    lines = [source.line for source in ordered]
    created = datetime.now(UTC).isoformat(timespec="seconds")
    total = sum(line.size for line in lines)
    raw = _manifest(part, created, lines, total, details)
    digest = hashlib.sha256(raw).hexdigest()
    out.write(tar_header(manifest_name(part, digest), len(raw)) + raw + _padding(len(raw)))
    for source in ordered:
        out.write(tar_header(f"{part}/{source.line.name}", source.line.size))
        _copy(source, out, copied)
        out.write(_padding(source.line.size))
    return Summary(part, created, len(lines), total, dict(details), digest)


def manifest_name(part: str, digest: str) -> str:
    """The name of the manifest with this digest in an archive."""
    return f"manifests/{part}-{digest}.jsonl"


def _manifest(part: str, created: str, lines: Sequence[FileLine], total: int, details: Mapping[str, Any]) -> bytes:
    head = {"format": FORMAT, "part": part, "created": created, "files": len(lines), "bytes": total, "details": details}
    rows: list[object] = [head]
    for line in lines:
        check_name(line.name)
        rows.append({"name": line.name, "size": line.size, "sha256": line.sha256})
    raw = "".join(f"{json.dumps(row)}\n" for row in rows).encode()
    if len(raw) > MAX_MANIFEST_BYTES:
        raise ArchiveError(f"{part} has {len(lines)} files, more than an archive can list: take a snapshot of the volume instead")
    return raw


def _copy(source: Source, out: BinaryIO, copied: Callable[[int], object]) -> None:
    digest, size, line = hashlib.sha256(), 0, source.line
    try:
        for piece in source.pieces():
            digest.update(piece)
            size += len(piece)
            if size > line.size:
                break
            out.write(piece)
            copied(len(piece))
    except FileNotFoundError:
        size = -1
    if (size, digest.hexdigest()) != (line.size, line.sha256):
        raise FileChanged(f"{printable(line.name)} changed while it was copied; run the command again")


# --- reading


class Section:
    """One section of an open archive, with a checked manifest. Its files can be read once, in order."""

    def __init__(self, reader: Reader, summary: Summary, raw: bytes) -> None:
        self.summary = summary
        self._reader = reader
        self._raw = raw

    @property
    def part(self) -> str:
        """The name of the part."""
        return self.summary.part

    def lines(self) -> Iterator[FileLine]:
        """The files in the order of the archive."""
        rows = io.BytesIO(self._raw)
        next(rows)
        for row in rows:
            yield _file_line(row)

    def files(self) -> Iterator[tuple[FileLine, Iterator[bytes]]]:
        """Each file with its bytes. Bytes that the caller does not read are checked, too. Raises ArchiveError for a wrong byte."""
        for line in self.lines():
            self._reader.expect(tar_header(f"{self.part}/{line.name}", line.size), line.name)
            pieces = self._pieces(line)
            yield line, pieces
            for _ in pieces:
                pass

    def skip(self) -> None:
        """Read and check the files without using them."""
        for _ in self.files():
            pass

    def _pieces(self, line: FileLine) -> Iterator[bytes]:
        digest, left = hashlib.sha256(), line.size
        while left:
            piece = self._reader.read(min(left, PIECE_BYTES))
            digest.update(piece)
            left -= len(piece)
            yield piece
        self._reader.expect(_padding(line.size), line.name)
        if digest.hexdigest() != line.sha256:
            raise ArchiveError(f"the archive is damaged: {printable(line.name)} does not have the digest of its manifest")


class Reader:
    """Reads an archive from its first byte to its last.

    With `open_ended`, the stream is an unbuffered file that the sender may keep open: the reader refuses bytes that arrive within
    LATE_SECONDS after the end of the archive, and does not wait for the end of the stream.
    """

    def __init__(self, stream: BinaryIO, *, open_ended: bool = False) -> None:
        self._stream = stream
        self._open_ended = open_ended
        self.position = 0

    def sections(self) -> Iterator[Section]:
        """Each section once; files that the caller does not read are checked and skipped. Raises ArchiveError."""
        seen: set[str] = set()
        while (section := self._section()) is not None:
            if section.part in seen:
                raise ArchiveError(f"the archive holds the part {section.part} twice")
            seen.add(section.part)
            start = self.position
            yield section
            if self.position == start:
                section.skip()
        if not seen:
            raise ArchiveError("the archive is empty")
        if (not self._open_ended or select.select([self._stream], [], [], LATE_SECONDS)[0]) and self._stream.read(1):
            raise ArchiveError("the archive has data after its end")

    def read(self, size: int) -> bytes:
        """Exactly `size` bytes; raises ArchiveError when the archive ends before."""
        pieces, left = [], size
        while left:
            piece = self._stream.read(left)
            if not piece:
                raise ArchiveError("the archive is truncated: create it or copy it again")
            pieces.append(piece)
            left -= len(piece)
        self.position += size
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def expect(self, expected: bytes, name: str) -> None:
        """Read the next bytes and compare them with `expected`; raises ArchiveError when they differ."""
        if expected and self.read(len(expected)) != expected:
            raise ArchiveError(f"the archive is damaged: the entry of {printable(name)} does not match the manifest")

    def _section(self) -> Section | None:
        start = self.position
        block = self.read(_BLOCK)
        if block == bytes(_BLOCK):
            self.expect(bytes(_BLOCK), "its end")
            return None
        match = _MANIFEST.fullmatch(block[:_NAME_FIELD].rstrip(b"\0"))
        size = int(block[124:135], 8) if re.fullmatch(rb"[0-7]{11}", block[124:135]) else -1
        if match is None or size < 0 or block != tar_header(match[0].decode(), size):
            raise ArchiveError("the file is not an archive of `iris-api backup` or `make k8s-backup`")
        if size > MAX_MANIFEST_BYTES:
            raise ArchiveError(f"a manifest of the archive has {size} bytes, more than {MAX_MANIFEST_BYTES}")
        raw = self.read(size)
        self.expect(_padding(size), match[0].decode())
        if hashlib.sha256(raw).hexdigest() != match[2].decode():
            raise ArchiveError("the archive is damaged: the digest of a manifest does not match its name")
        return Section(self, _summary(match[1].decode(), raw, start), raw)


def verify(stream: BinaryIO) -> list[Summary]:
    """Read a whole archive and check every byte of it; raises ArchiveError."""
    reader, summaries = Reader(stream), []
    for section in reader.sections():
        section.skip()
        summaries.append(dataclasses.replace(section.summary, end=reader.position))
    return summaries


def _summary(part: str, raw: bytes, start: int) -> Summary:
    """The summary in the first line of a manifest, after a check of all its lines."""
    rows = io.BytesIO(raw)
    document = _json_object(next(rows, b""))
    if document.get("format") != FORMAT:
        raise ArchiveError(
            f"the archive has the format '{printable(str(document.get('format')))[:40]}', but this release reads {FORMAT}: "
            "restore it with the release that created it"
        )
    details = document.get("details")
    if document.get("part") != part or not isinstance(details, dict) or not raw.endswith(b"\n"):
        raise ArchiveError(f"the manifest of {part} is invalid")
    count = total = 0
    previous = b""
    for row in rows:
        line = _file_line(row)
        name = os.fsencode(line.name)
        if name <= previous:
            raise ArchiveError(f"the manifest of {part} lists a file twice or not in order")
        previous = name
        count += 1
        total += line.size
    if (document.get("files"), document.get("bytes")) != (count, total):
        raise ArchiveError(f"the totals in the manifest of {part} do not match its list of files")
    created = printable(str(document.get("created", "")))[:40]
    return Summary(part, created, count, total, details, hashlib.sha256(raw).hexdigest(), start)


def _file_line(raw: bytes) -> FileLine:
    document = _json_object(raw)
    name, size, digest = document.get("name"), document.get("size"), document.get("sha256")
    if (
        not isinstance(name, str)
        or type(size) is not int
        or not 0 <= size <= MAX_SIZE
        or not isinstance(digest, str)
        or not _DIGEST.fullmatch(digest)
    ):
        raise ArchiveError("a line in a manifest of the archive has no valid name, size and digest")
    check_name(name)
    return FileLine(name, size, digest)


def _json_object(raw: bytes) -> dict[str, Any]:
    if len(raw) <= MAX_LINE_BYTES:
        try:
            document = json.loads(raw)
        except (ValueError, RecursionError):
            document = None
        if isinstance(document, dict):
            return document
    raise ArchiveError("a manifest of the archive does not consist of lines of JSON")


def check_name(name: str) -> None:
    """Raise ArchiveError unless `name` is a relative path that stays inside its folder."""
    try:
        raw = os.fsencode(name)
    except ValueError:
        raw = b""
    components = raw.split(b"/")
    if (
        not 0 < len(raw) <= MAX_NAME_BYTES
        or b"\0" in raw
        or any(part in (b"", b".", b"..") or len(part) > MAX_COMPONENT_BYTES for part in components)
    ):
        raise ArchiveError(f"'{printable(name)[:100]}' is not the name of a file inside its folder")


# --- the tar format (GNU)


def tar_header(name: str, size: int) -> bytes:
    """The header of a regular file that only its owner may read."""
    raw = os.fsencode(name)
    if len(raw) <= _NAME_FIELD:
        return _block(raw, size, b"0")
    long = raw + b"\0"
    return _block(_LONG_NAME, len(long), b"L") + long + _padding(len(long)) + _block(raw[:_NAME_FIELD], size, b"0")


def _block(name: bytes, size: int, kind: bytes) -> bytes:
    number = b"%011o\0" % size if size < 8**11 else b"\x80" + size.to_bytes(11, "big")
    owner = b"0000000\0"
    before = struct.pack("100s8s8s8s12s12s", name, b"0000600\0", owner, owner, number, b"00000000000\0")
    after = struct.pack("1s100s8s247s", kind, b"", b"ustar  \0", b"")
    return before + b"%06o\0 " % (sum(before) + sum(after) + 8 * ord(" ")) + after


def _padding(size: int) -> bytes:
    return bytes(-size % _BLOCK)
