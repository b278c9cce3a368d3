"""Where tables are read and results are written: this machine, or a bucket that pyarrow knows (gs://, s3://, …)."""

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

from pyarrow import ArrowException
from pyarrow import fs as arrow

from serve_app.artifacts.durable import replace_file
from serve_app.errors import BackendUnavailable, UsageError

Kind = Literal["csv", "parquet"]
KINDS: dict[str, Kind] = {".csv": "csv", ".parquet": "parquet", ".pq": "parquet"}
"""Kinds of files by the ending of their names."""


@dataclass(frozen=True, slots=True)
class Source:
    """A file of the input; size in bytes; `stamp` changes when the content does."""

    path: str
    size: int
    stamp: str


@dataclass(frozen=True)
class Location:
    """A file, folder or pattern: `uri` as the user wrote it. Every worker connects on its own."""

    uri: str

    @cached_property
    def _resolved(self) -> tuple[Any, str]:
        with translate_errors(self.redacted):
            if "://" not in self.uri:
                return arrow.LocalFileSystem(), os.path.abspath(self.uri)
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
    def redacted(self) -> str:
        """The address without user name, password and query, which may be secret."""
        scheme, separator, rest = self.uri.partition("://")
        if not separator:
            return self.uri
        return f"{scheme}://{rest.partition('?')[0].rpartition('@')[2]}"

    @property
    def local(self) -> bool:
        """Whether it is on this machine."""
        return isinstance(self.filesystem, arrow.LocalFileSystem)


@contextlib.contextmanager
def translate_errors(name: str) -> Iterator[None]:
    """Turn errors of a filesystem into UsageError or BackendUnavailable with one sentence about `name`."""
    try:
        yield
    except FileNotFoundError:
        raise UsageError(f"{name} does not exist") from None
    except PermissionError:
        raise UsageError(f"{name} may not be used by this user: change its permissions") from None
    except OSError as error:
        raise BackendUnavailable(f"{name} cannot be used: {_brief(error)}") from None
    except ArrowException as error:
        raise UsageError(f"{name} cannot be used: {_brief(error)}") from None


def sources(location: Location) -> tuple[Kind, list[Source]]:
    """The files of the input in the order of their paths, all of one kind.

    Raises UsageError when there is no table or both kinds, BackendUnavailable when the filesystem fails.
    """
    with translate_errors(location.redacted):
        files = [_source(info) for info in _list(location) if info.is_file]
    if not files:
        raise UsageError(f"{location.redacted} names no file that ends in {', '.join(KINDS)}")
    kinds = {_kind(source.path) for source in files}
    if len(kinds) > 1:
        raise UsageError(
            f"{location.redacted} holds CSV and Parquet files: score them one after the other, e.g. with a pattern '*.csv'"
        )
    return kinds.pop(), sorted(files, key=lambda source: source.path)


def _list(location: Location) -> list[Any]:
    filesystem, path = location.filesystem, location.path
    if "*" in path and location.local:
        return list(filesystem.get_file_info([name for name in glob.glob(path, recursive=True) if _is_table(name)]))
    if "*" in path:
        base = path[: path.index("*")].rpartition("/")[0]
        inside = filesystem.get_file_info(arrow.FileSelector(base, recursive=True))
        return [info for info in inside if fnmatch.fnmatchcase(info.path, path) and _is_table(info.path)]
    info = filesystem.get_file_info(path)
    if info.type == arrow.FileType.NotFound:
        raise FileNotFoundError(path)
    if info.type != arrow.FileType.Directory:
        _kind(path)
        return [info]
    return [info for info in filesystem.get_file_info(arrow.FileSelector(path, recursive=True)) if _is_table(info.path, base=path)]


def _is_table(path: str, *, base: str = "") -> bool:
    """By its name; names that begin with a dot or an underscore are skipped."""
    parts = path.removeprefix(base).split("/") if base else [path.rpartition("/")[2]]
    return file_kind(path) is not None and not any(part.startswith((".", "_")) for part in parts)


def file_kind(name: str) -> Kind | None:
    """The kind of a file by the ending of its name, None when the name tells nothing."""
    return KINDS.get(Path(name).suffix.lower())


def _kind(path: str) -> Kind:
    kind = file_kind(path)
    if kind is None:
        raise UsageError(f"{path} is neither CSV nor Parquet by its name: it must end in {', '.join(KINDS)} (unpack it first)")
    return kind


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
