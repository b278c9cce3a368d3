"""Where tables come from and results go: this machine, or a bucket that pyarrow knows (gs://, s3://, …)."""

from __future__ import annotations

import contextlib
import fnmatch
import glob
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pyarrow import ArrowException
from pyarrow import fs as arrow

from serve_app.errors import BackendUnavailable, UsageError

Kind = Literal["csv", "parquet"]
KINDS: dict[str, Kind] = {".csv": "csv", ".parquet": "parquet", ".pq": "parquet"}


@dataclass(frozen=True, slots=True)
class Source:
    """A file of the input; `stamp` changes when its content does."""

    path: str
    size: int
    stamp: str


@dataclass(frozen=True)
class Location:
    """A file, folder or pattern: `uri` as the user wrote it. A worker makes its own connection from it."""

    uri: str

    @cached_property
    def _resolved(self) -> tuple[Any, str]:
        with translate_errors(self.shown):
            if "://" not in self.uri:
                return arrow.LocalFileSystem(), os.path.abspath(self.uri)
            filesystem, path = arrow.FileSystem.from_uri(self.uri)
            return filesystem, path

    @property
    def filesystem(self) -> Any:
        return self._resolved[0]

    @property
    def path(self) -> str:
        return self._resolved[1]

    @property
    def shown(self) -> str:
        """The address without what may be secret in it."""
        scheme, separator, rest = self.uri.partition("://")
        if not separator:
            return self.uri
        return f"{scheme}://{rest.partition('?')[0].rpartition('@')[2]}"

    @property
    def local(self) -> bool:
        return isinstance(self.filesystem, arrow.LocalFileSystem)


@contextlib.contextmanager
def translate_errors(shown: str) -> Iterator[None]:
    """What a filesystem complains about, as one sentence."""
    try:
        yield
    except FileNotFoundError:
        raise UsageError(f"{shown} does not exist") from None
    except PermissionError:
        raise UsageError(f"{shown} may not be used by this user: change its permissions") from None
    except OSError as error:
        raise BackendUnavailable(f"{shown} cannot be used: {_brief(error)}") from None
    except ArrowException as error:
        raise UsageError(f"{shown} cannot be used: {_brief(error)}") from None


def sources(place: Location) -> tuple[Kind, list[Source]]:
    """The files of the input in the order of their paths, all of one kind; raises UsageError."""
    with translate_errors(place.shown):
        found = [_source(info) for info in _listed(place) if info.is_file]
    if not found:
        raise UsageError(f"{place.shown} names no file that ends in {', '.join(KINDS)}")
    kinds = {_kind(source.path) for source in found}
    if len(kinds) > 1:
        raise UsageError(f"{place.shown} holds CSV and Parquet files: score them one after the other, e.g. with a pattern '*.csv'")
    return kinds.pop(), sorted(found, key=lambda source: source.path)


def _listed(place: Location) -> list[Any]:
    filesystem, path = place.filesystem, place.path
    if "*" in path and place.local:
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
    """By its name; what begins with a dot or an underscore is nobody's table."""
    parts = path.removeprefix(base).split("/") if base else [path.rpartition("/")[2]]
    return Path(path).suffix.lower() in KINDS and not any(part.startswith((".", "_")) for part in parts)


def _kind(path: str) -> Kind:
    found = KINDS.get(Path(path).suffix.lower())
    if found is None:
        raise UsageError(f"{path} is neither CSV nor Parquet by its name: it must end in {', '.join(KINDS)} (unpack it first)")
    return found


def _source(info: Any) -> Source:
    return Source(info.path, info.size, str(info.mtime_ns))


class Folder:
    """The output: files that appear whole or not at all."""

    def __init__(self, place: Location) -> None:
        self.place = place

    def names(self) -> dict[str, int]:
        """Names and sizes of the files in it; empty when it does not exist."""
        with translate_errors(self.place.shown):
            selector = arrow.FileSelector(self.place.path, allow_not_found=True)
            return {info.base_name: info.size for info in self.place.filesystem.get_file_info(selector)}

    def read(self, name: str) -> bytes:
        with (
            translate_errors(f"{self.place.shown}/{name}"),
            self.place.filesystem.open_input_stream(f"{self.place.path}/{name}") as stream,
        ):
            data: bytes = stream.read()
            return data

    def write(self, name: str, data: Any) -> None:
        """A bucket shows an object when it is complete; elsewhere it is written aside and renamed."""
        path = f"{self.place.path}/{name}"
        with translate_errors(f"{self.place.shown}/{name}"):
            if self.place.local:
                _write_here(Path(path), data)
                return
            with self.place.filesystem.open_output_stream(path) as stream:
                stream.write(data)

    def remove(self, names: list[str]) -> None:
        with translate_errors(self.place.shown):
            for name in names:
                self.place.filesystem.delete_file(f"{self.place.path}/{name}")


def _write_here(path: Path, data: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        with open(aside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def _brief(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
