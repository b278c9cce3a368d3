"""Where tables are read and results are written: this machine, or a bucket (gs://, s3://, and others that pyarrow knows)."""

from __future__ import annotations

import contextlib
import fnmatch
import glob
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

from pyarrow import ArrowException
from pyarrow import fs as arrow

from serve_app.artifacts.durable import replace_file
from serve_app.errors import BackendUnavailable, IrisApiError, UsageError
from serve_app.printable import printable
from serve_app.tables import address
from serve_app.tables.buckets import open_bucket, parse
from serve_app.tables.network_errors import bucket_error, missing
from serve_app.tables.scratch import local_name

Kind = Literal["csv", "parquet"]
KINDS: dict[str, Kind] = {
    **dict.fromkeys((".csv", ".tsv"), "csv"),
    **dict.fromkeys((".parquet", ".pq", ".parq"), "parquet"),
}
"""Kinds of files by the endings of their names, in folders; a packed file like `table.csv.gz` has two. A file that is named alone
is Parquet by its content, else CSV."""

PARQUET_MARK = b"PAR1"
"""The first bytes of a Parquet file."""

HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
"""The value of a key that is missing, in the name of a folder."""


@dataclass(frozen=True, slots=True)
class Source:
    """A file of the input; size in bytes; `stamp` changes when the content does."""

    path: str
    size: int
    stamp: str


@dataclass(frozen=True)
class Location:
    """A file, folder or pattern: `uri` as the user wrote it. Every worker connects on its own.

    `scratch` is the folder of this machine that its files were copied to (`fetch.fetched`), empty when there is no copy.
    """

    uri: str
    scratch: str = ""
    allow_http: bool = False

    @classmethod
    def of(cls, place: Path | Location) -> Location:
        """The location of a path of this machine; a location as it is."""
        return place if isinstance(place, Location) else cls(str(place))

    @cached_property
    def _resolved(self) -> tuple[Any, str]:
        if self.scratch:
            return arrow.SubTreeFileSystem(self.scratch, arrow.LocalFileSystem()), self.copy_path
        if self.web:
            raise UsageError(f"{self.redacted} is a web address, and nothing can be written to one: name a folder or a bucket")
        with translate_errors(self.redacted):
            if "://" not in self.uri:
                return arrow.LocalFileSystem(), os.path.abspath(self.uri)
            if self.scheme in address.BUCKETS:
                return open_bucket(self.uri, allow_http=self.allow_http)
            filesystem, path = arrow.FileSystem.from_uri(self.uri)
            return filesystem, path

    @property
    def filesystem(self) -> Any:
        """The pyarrow filesystem; raises UsageError or BackendUnavailable when there is none for the address."""
        return self._resolved[0]

    @property
    def path(self) -> str:
        """The path within the filesystem."""
        return self._resolved[1]

    @property
    def scheme(self) -> str:
        """`gs`, `s3`, `https`, …; empty for a path of this machine."""
        return address.scheme(self.uri)

    @property
    def web(self) -> bool:
        """Whether it is a file of a web server."""
        return self.scheme in address.WEB

    @property
    def remote(self) -> bool:
        """Whether `fetch.fetched` copies it to this machine."""
        return self.web or self.scheme in address.BUCKETS

    @property
    def copy_path(self) -> str:
        """The path of a copy within `scratch`."""
        if self.web:
            return local_name(address.web_file_path(self.uri))
        return local_name(parse(self.uri).path)

    @property
    def redacted(self) -> str:
        """The address without user name, password and query, which may be secret."""
        return address.redacted(self.uri)

    @property
    def name(self) -> str:
        """What messages and records call the table: the name of a local file, or an address without what may be secret."""
        return printable(self.redacted if self.scheme else Path(self.uri).name)

    @property
    def local(self) -> bool:
        """Whether it is on this machine."""
        return isinstance(self.filesystem, arrow.LocalFileSystem)


@contextlib.contextmanager
def translate_errors(name: str) -> Iterator[None]:
    """Turn errors of a filesystem into UsageError or BackendUnavailable with one sentence about `name`."""
    try:
        yield
    except (OSError, ArrowException) as error:
        raise bucket_error(name, str(error)) or _file_error(name, error) from None


def _file_error(name: str, error: OSError | ArrowException) -> IrisApiError:
    if isinstance(error, FileNotFoundError):
        return missing(name) if "://" in name else UsageError(f"{name} does not exist")
    if isinstance(error, PermissionError):
        return UsageError(f"{name} may not be used by this user: change its permissions")
    if isinstance(error, OSError):
        return BackendUnavailable(f"{name} cannot be used: {_brief(error)}")
    return UsageError(f"{name} cannot be used: {_brief(error)}")


def sources(location: Location) -> tuple[Kind, list[Source]]:
    """The files of the input in the order of their paths, all of one kind.

    Raises UsageError when there is no table or both kinds, BackendUnavailable when the filesystem fails.
    """
    with translate_errors(location.redacted):
        files = [(_kind(location, info.path), _source(info)) for info in _list(location) if info.is_file]
    tables = [(kind, source) for kind, source in files if kind is not None]
    if not tables:
        raise UsageError(f"{location.redacted} holds no table: name a CSV or Parquet file, or a folder of such files")
    kinds = {kind for kind, _ in tables}
    if len(kinds) > 1:
        raise UsageError(
            f"{location.redacted} holds CSV and Parquet files: name one kind after the other, for example with the pattern '*.csv'"
        )
    return kinds.pop(), sorted((source for _, source in tables), key=lambda source: source.path)


def hive_keys(location: Location, path: str) -> dict[str, str | None]:
    """The columns that the folders of a file give, like `year=2026`; only folders below the one that the user named count."""
    base = location.path
    if "*" in base:
        base = base[: base.index("*")].rpartition("/")[0]
    keys: dict[str, str | None] = {}
    for part in path.removeprefix(base).split("/")[1:-1]:
        name, separator, value = part.partition("=")
        if separator and name:
            keys[unquote(name)] = None if value == HIVE_NULL else unquote(value)
    return keys


def _list(location: Location) -> list[Any]:
    """The files that are named, or those of a folder or pattern that are neither hidden nor empty."""
    filesystem, path = location.filesystem, location.path
    if "*" in path and location.local:
        names = [name for name in glob.glob(path, recursive=True) if _is_visible(name)]
        return [info for info in filesystem.get_file_info(names) if info.size]
    if "*" in path:
        base = path[: path.index("*")].rpartition("/")[0]
        inside = filesystem.get_file_info(arrow.FileSelector(base, recursive=True))
        return [info for info in inside if fnmatch.fnmatchcase(info.path, path) and _is_visible(info.path) and info.size]
    info = filesystem.get_file_info(path)
    if info.type == arrow.FileType.NotFound:
        raise FileNotFoundError(path)
    if info.type != arrow.FileType.Directory:
        return [info]
    inside = filesystem.get_file_info(arrow.FileSelector(path, recursive=True))
    return [info for info in inside if _is_visible(info.path, base=path) and info.size]


def _is_visible(path: str, *, base: str = "") -> bool:
    """Names that begin with a dot or an underscore are skipped."""
    parts = path.removeprefix(base).split("/") if base else [path.rpartition("/")[2]]
    return not any(part.startswith((".", "_")) for part in parts)


def _kind(location: Location, path: str) -> Kind | None:
    """The kind of a file; None for a file of a folder that is no table by its name and content."""
    by_name = next((KINDS[ending.lower()] for ending in reversed(Path(path).suffixes) if ending.lower() in KINDS), None)
    alone = path == location.path
    if by_name is not None and not alone:
        return by_name
    with location.filesystem.open_input_file(path) as file:
        parquet = file.read(len(PARQUET_MARK)) == PARQUET_MARK
    if parquet or by_name == "parquet":
        return "parquet"
    return "csv" if alone else None


def _source(info: Any) -> Source:
    return Source(info.path, info.size, str(info.mtime_ns))


class Folder:
    """The folder of the output: its files appear whole or not at all."""

    def __init__(self, location: Location) -> None:
        self.location = location

    def names(self) -> dict[str, int]:
        """Names and sizes of the files in it; empty when it does not exist."""
        with translate_errors(self.location.redacted):
            selector = arrow.FileSelector(self.location.path, allow_not_found=True)
            return {info.base_name: info.size for info in self.location.filesystem.get_file_info(selector)}

    def read(self, name: str) -> bytes:
        """The bytes of a file; raises UsageError when it does not exist."""
        with (
            translate_errors(f"{self.location.redacted}/{name}"),
            self.location.filesystem.open_input_stream(f"{self.location.path}/{name}") as stream,
        ):
            data: bytes = stream.read()
            return data

    def write(self, name: str, data: Any) -> None:
        """Write a file in one step: a bucket shows only complete objects, a local file is written aside and renamed."""
        path = f"{self.location.path}/{name}"
        with translate_errors(f"{self.location.redacted}/{name}"):
            if self.location.local:
                replace_file(Path(path), data)
                return
            with self.location.filesystem.open_output_stream(path) as stream:
                stream.write(data)

    def remove(self, names: list[str]) -> None:
        """Remove files, in this order."""
        with translate_errors(self.location.redacted):
            for name in names:
                self.location.filesystem.delete_file(f"{self.location.path}/{name}")


def _brief(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
