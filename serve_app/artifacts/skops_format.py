"""Models in the format of skops, which executes nothing when it is loaded. What a file would need is added up before it is parsed.

A file is a zip archive: `schema.json` is a tree of objects, which name arrays among the other members. A member is read for each
object that names it, so a small file can ask for any amount of memory.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from serve_app.errors import BundleRefused

MAX_GROWTH = 100
"""How many times its size a file may grow; one that wants more was made to fill the memory."""
MAX_MEMBERS = 20_000
MAX_SCHEMA_BYTES = 64 * 1024 * 1024
NODE_BYTES = 4096
"""Memory of one object of the tree while it is loaded; skops keeps several Python objects for each."""
SCHEMA = "schema.json"
TRUSTED = ["serve_app.inference.date_parts.DateCoder", "serve_app.inference.date_parts.DateParts"]
"""Our own classes in a model with dates; they hold numbers and texts."""
SCHEMA_GROWTH = 20
"""Memory of a parsed JSON document, in multiples of its bytes."""


def skops_to_joblib(file: Path, limit: int) -> bytes:
    """The model of a file as a pickle. Only TRUSTED types and those that skops trusts by itself are loaded.

    `limit` is the memory in bytes that loading may need. Raises BundleRefused `forbidden` or `load`.
    """
    import joblib
    import skops.io

    buffer = io.BytesIO()
    try:
        check_growth(file, limit)
        joblib.dump(skops.io.load(file, trusted=TRUSTED), buffer)
    except skops.io.exceptions.UntrustedTypesFoundException:
        raise BundleRefused("forbidden", "the model in MLflow holds types that skops does not trust") from None
    except BundleRefused:
        raise
    except Exception as error:  # any: the file may hold anything
        raise BundleRefused("load", f"the model in MLflow cannot be loaded by skops ({type(error).__name__})") from error
    return buffer.getvalue()


def check_growth(file: Path, limit: int) -> None:
    """Refuse a file that would need more memory than `limit` bytes, or than MAX_GROWTH times its size; raises BundleRefused."""
    most = min(limit, MAX_GROWTH * file.stat().st_size)
    with zipfile.ZipFile(file) as archive:
        members = {entry.filename: entry for entry in archive.infolist()}
        if len(members) > MAX_MEMBERS or len(archive.infolist()) != len(members):
            raise BundleRefused("forbidden", f"the model in MLflow has more than {MAX_MEMBERS} members, or two of one name")
        _check(sum(entry.file_size for entry in members.values()), most)  # zipfile reads no member further than it says
        schema = members.get(SCHEMA)
        if schema is None or schema.file_size > MAX_SCHEMA_BYTES:
            raise BundleRefused("forbidden", f"the model in MLflow has no {SCHEMA}, or one of more than {MAX_SCHEMA_BYTES} bytes")
        _check(schema.file_size * SCHEMA_GROWTH, limit)
        raw = archive.read(schema)
        _check(raw.count(b"__loader__") * NODE_BYTES + schema.file_size * SCHEMA_GROWTH, limit)
        sizes: dict[str, int] = {}
        total = 0
        for name in _references(orjson.loads(raw)):
            if name in members:
                if name not in sizes:
                    sizes[name] = _unpacked_bytes(archive, members[name], most)
                total += sizes[name]
                _check(total, most)


def _check(size: int, most: int) -> None:
    if size > most:
        raise BundleRefused("forbidden", f"the model in MLflow would grow to more than {most} bytes when it is loaded")


def _references(schema: Any) -> Iterator[str]:
    """The member of each object that would be read. An object with the `__id__` of an earlier one is not read again."""
    seen: set[tuple[Any, str]] = set()
    values = [schema]
    while values:
        value = values.pop()
        if isinstance(value, list):
            values.extend(value)
        elif isinstance(value, dict):
            values.extend(value.values())
            name, identity = value.get("file"), value.get("__id__")
            if isinstance(name, str) and not _is_repeated(identity, name, seen):
                yield name


def _is_repeated(identity: Any, name: str, seen: set[tuple[Any, str]]) -> bool:
    if not isinstance(identity, int | str) or not identity:
        return False
    repeated = (identity, name) in seen
    seen.add((identity, name))
    return repeated


def _unpacked_bytes(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, most: int) -> int:
    """Bytes that reading one member takes: the member, and the array in it, which must be as large as its header says.

    An `.npz` member is an archive itself: its members are added up in the same way.
    """
    with archive.open(entry) as member:
        if not zipfile.is_zipfile(io.BytesIO(member.read(4)) if entry.file_size < 4 else member):
            member.seek(0)
            return entry.file_size + _array_bytes(member, entry.file_size)
        member.seek(0)
        with zipfile.ZipFile(member) as inner:
            entries = inner.infolist()
            size = entry.file_size + sum(part.file_size for part in entries)
            if len(entries) > MAX_MEMBERS:
                raise BundleRefused("forbidden", f"the model in MLflow has more than {MAX_MEMBERS} members")
            _check(size, most)
            for part in entries:
                with inner.open(part) as array:
                    size += _array_bytes(array, part.file_size)
            return size


def _array_bytes(file: Any, size: int) -> int:
    """Bytes of the array in an `.npy` file of `size` bytes, by its header; 0 for another file. A header that lies is refused."""
    try:
        version = np.lib.format.read_magic(file)
    except ValueError:
        return 0
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = reader(file)
    count = 1
    for length in shape:
        count *= int(length)
    if dtype.hasobject or count * dtype.itemsize > size:
        raise BundleRefused("forbidden", "the model in MLflow holds an array whose header does not fit its bytes")
    return int(count * dtype.itemsize)
