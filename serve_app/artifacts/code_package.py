"""Packages of the user's code that travel in a bundle: what a pickled model imports besides installed libraries.

A package is a zip file of modules, made from a file, a folder or a wheel. The manifest lists its digest like that of every file.
This module reads and writes such files and runs nothing of them; `serve_app/inference/code_import.py` imports them.
"""

from __future__ import annotations

import ast
import io
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath

from serve_app.artifacts.names import PACKAGE
from serve_app.errors import BundleRefused, UsageError

MAX_FILES = 2_000
MAX_BYTES = 32 * 1024 * 1024
"""Bytes of all files of one package, unpacked."""
MAX_PATH = 300
"""Characters of the path of one file."""

_EPOCH = (1980, 1, 1, 0, 0, 0)
"""The time of every file: the same code gives the same bytes."""
_COMPILED = (".so", ".pyd", ".dll", ".dylib", ".pyx")
_LEFT_OUT = ("__pycache__", ".pyc", ".pyo", ".dist-info", ".egg-info", ".data")

Sources = Mapping[str, bytes]
"""The files of packages by path, like `own_steps.py` or `own/steps.py`."""


def pack_package(path: Path) -> tuple[str, bytes]:
    """The name in a bundle and the bytes of the package at `path`: a module, a folder or a wheel. Nothing of it is run.

    A folder with an `__init__.py` is a package; of any other folder, the modules and packages in it are taken. Raises UsageError
    for what cannot be imported from a bundle: no Python, a syntax error, compiled modules, more than MAX_FILES or MAX_BYTES.
    """
    if path.suffix == ".py" and path.is_file():
        files = _bounded(path, [(path.name, path)])
    elif path.suffix == ".whl" and path.is_file():
        files = _files_of_wheel(path)
    elif path.is_dir():
        files = _bounded(path, _files_of_folder(path.resolve()))
    else:
        raise UsageError(f"--package {path} is no module (.py), folder or wheel (.whl)")
    _check(path, files)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(entry, files[name])
    stem = re.sub(r"[^A-Za-z0-9._-]", "_", path.resolve().stem)[:80]
    return f"package-{stem}.zip", buffer.getvalue()


def package_files(names: Iterable[str]) -> set[str]:
    """The files of packages among the files of a bundle."""
    return {name for name in names if PACKAGE.fullmatch(name)}


def read_packages(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The sources of all packages among the files of a bundle; empty when there is none.

    Raises BundleRefused `load` for a file that is no package, or that is larger than a package may be.
    """
    sources: dict[str, bytes] = {}
    for name in sorted(package_files(files)):
        try:
            unpacked = _unpacked(files[name])
        except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, OSError, ValueError) as error:
            raise BundleRefused("load", f"{name} is no usable package ({type(error).__name__})") from None
        if not sources.keys().isdisjoint(unpacked):
            raise BundleRefused("load", f"{name} holds a module that another package of the bundle holds, too")
        sources |= unpacked
    return sources


def top_modules(sources: Iterable[str]) -> frozenset[str]:
    """The names that can be imported: modules at the top, and folders with modules below them."""
    return frozenset(PurePosixPath(path).parts[0].removesuffix(".py") for path in sources if path.endswith(".py"))


def _unpacked(data: bytes) -> dict[str, bytes]:
    """The files of a zip file by path; raises ValueError for one that breaks a bound, and the errors of zipfile."""
    files: dict[str, bytes] = {}
    left = MAX_BYTES
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = [entry for entry in archive.infolist() if not entry.is_dir()]
        if len(entries) > MAX_FILES:
            raise ValueError(f"it holds more than {MAX_FILES} files")
        for entry in entries:
            if not _is_path(entry.filename) or entry.filename in files:
                raise ValueError("it holds a file with a path that no package has")
            with archive.open(entry) as file:  # a size in the directory of a zip file may be a lie
                content = file.read(left + 1)
            left -= len(content)
            if left < 0:
                raise ValueError(f"it unpacks to more than {MAX_BYTES} bytes")
            files[entry.filename] = content
    return files


def _is_path(path: str) -> bool:
    parts = path.split("/")
    return len(path) <= MAX_PATH and "\\" not in path and "\0" not in path and all(part not in ("", ".", "..") for part in parts)


def _files_of_wheel(path: Path) -> dict[str, bytes]:
    try:
        files = _unpacked(path.read_bytes())
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, ValueError, OSError) as error:
        raise UsageError(f"--package {path} cannot be read as a wheel ({error})") from None
    return {name: content for name, content in files.items() if not _is_left_out(PurePosixPath(name))}


def _files_of_folder(folder: Path) -> Iterator[tuple[str, Path]]:
    """Paths in the package and on the disk."""
    if (folder / "__init__.py").is_file():
        yield from _below(folder, folder.parent)
        return
    for entry in sorted(folder.iterdir()):
        if entry.suffix == ".py" and entry.is_file():
            yield entry.name, entry
        elif (entry / "__init__.py").is_file():
            yield from _below(entry, folder)


def _below(folder: Path, above: Path) -> Iterator[tuple[str, Path]]:
    for file in sorted(folder.rglob("*")):
        relative = file.relative_to(above)
        if file.is_file() and not file.is_symlink() and not _is_left_out(PurePosixPath(relative.as_posix())):
            yield relative.as_posix(), file


def _is_left_out(path: PurePosixPath) -> bool:
    return any(part.startswith(".") or part.endswith(_LEFT_OUT) for part in path.parts)


def _bounded(path: Path, files: Iterable[tuple[str, Path]]) -> dict[str, bytes]:
    contents: dict[str, bytes] = {}
    size = 0
    for name, file in files:
        size += file.stat().st_size
        if len(contents) >= MAX_FILES or size > MAX_BYTES:
            raise UsageError(f"--package {path} holds more than {MAX_FILES} files or {MAX_BYTES >> 20} MB: name a smaller folder")
        contents[name] = file.read_bytes()
    return contents


def _check(path: Path, files: Sources) -> None:
    """Raise UsageError for files that no replica could import."""
    modules = top_modules(files)
    if not modules:
        raise UsageError(f"--package {path} holds no Python module")
    wrong = sorted(name for name in modules if not name.isidentifier() or name.startswith("__"))
    if wrong:
        raise UsageError(f"--package {path}: {wrong[0]} is no name that can be imported: rename it")
    if not all(_is_path(name) for name in files):
        raise UsageError(f"--package {path} holds a file whose path has more than {MAX_PATH} characters or a backslash")
    compiled = sorted(name for name in files if name.endswith(_COMPILED))
    if compiled:
        raise UsageError(f"--package {path} holds the compiled module {compiled[0]}: install it in the image instead")
    for name, source in files.items():
        if name.endswith(".py"):
            try:
                ast.parse(source, name)
            except (SyntaxError, ValueError) as error:
                raise UsageError(f"--package {path}: {name} is no Python {_place(error)}".rstrip()) from None


def _place(error: Exception) -> str:
    line = getattr(error, "lineno", None)
    return f"(line {line})" if line else ""
