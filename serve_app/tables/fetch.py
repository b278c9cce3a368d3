"""Copies of tables from buckets and web servers on this machine, for commands that read a table more than once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import IO, Any

from pyarrow import ArrowException

from serve_app import progress
from serve_app.errors import BackendUnavailable, UsageError
from serve_app.tables.attempts import Attempts
from serve_app.tables.location import Location, Source, sources, translate_errors
from serve_app.tables.scratch import Scratch, ScratchSpace, open_scratch
from serve_app.tables.web_file import download

BLOCK = 8 << 20
"""Bytes of one read from a bucket."""

FILES_AT_ONCE = 8

_FINAL = (FileNotFoundError, PermissionError, ArrowException)
"""Errors for which a retry does not help."""


@contextmanager
def fetched(location: Location, space: ScratchSpace, report: progress.Progress) -> Iterator[Location]:
    """The location itself when it is on this machine; otherwise a location with copies of its files, removed at the end.

    The copies have the names and paths of the originals. Raises UsageError or BackendUnavailable.
    """
    if not location.remote:
        yield location
        return
    with open_scratch(space) as scratch:
        with report(f"download {location.redacted}"), _disk_errors(location):
            if location.web:
                _fetch_file(location, scratch)
            else:
                _fetch_bucket(location, scratch)
        yield replace(location, scratch=str(scratch.folder))


def _fetch_file(location: Location, scratch: Scratch) -> None:
    target = scratch.file(location.copy_path)
    with progress.bar(None, "download", "B", scaled=True, delay=1.0) as bar:

        def expect(size: int) -> None:
            bar.total = size

        download(location.uri, target, scratch, allow_http=location.allow_http, advance=bar.update, expect=expect)


def _fetch_bucket(location: Location, scratch: Scratch) -> None:
    _, files = sources(location)
    size = sum(source.size for source in files)
    scratch.reserve(location.redacted, size)
    lock = threading.Lock()
    with (
        progress.bar(size, "download", "B", scaled=True, delay=1.0) as bar,
        ThreadPoolExecutor(min(FILES_AT_ONCE, len(files))) as pool,
    ):

        def copy(source: Source) -> None:
            for count in _copy(location, source, scratch):
                with lock:
                    bar.update(count)

        copies = [pool.submit(copy, source) for source in files]
        try:
            for each in copies:
                each.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _copy(location: Location, source: Source, scratch: Scratch) -> Iterator[int]:
    """Copy one object, and yield the size of each block. A retry continues where the failed read ended."""
    name = f"{location.scheme}://{source.path}"
    attempts = Attempts()
    with open(scratch.file(source.path), "wb") as target:
        while target.tell() < source.size:
            before = target.tell()
            try:
                with location.filesystem.open_input_file(source.path) as file:
                    yield from _blocks(file, target, source.size, name, scratch)
            except (OSError, ArrowException, ValueError) as error:
                if attempts.failed(target.tell() - before) or isinstance(error, _FINAL):
                    with translate_errors(name):
                        # Google's client closes a file after a broken connection; the next read raises ValueError.
                        raise error if isinstance(error, OSError | ArrowException) else OSError("the connection broke") from None
                attempts.pause()
    with translate_errors(name):
        info: Any = location.filesystem.get_file_info(source.path)
    if (info.size, str(info.mtime_ns)) != (source.size, source.stamp):
        raise BackendUnavailable(f"{name} changed during the download: start again")


def _blocks(file: Any, target: IO[bytes], size: int, name: str, scratch: Scratch) -> Iterator[int]:
    while target.tell() < size:
        block = file.read_at(min(BLOCK, size - target.tell()), target.tell())
        if not block:
            raise BackendUnavailable(f"{name} changed during the download: start again")
        scratch.add(name, len(block))
        target.write(block)
        yield len(block)


@contextmanager
def _disk_errors(location: Location) -> Iterator[None]:
    """Turn an error of this machine's disk into UsageError."""
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"{location.redacted} cannot be written to the disk ({error.strerror or error}): name another folder with --scratch-dir"
        ) from None
