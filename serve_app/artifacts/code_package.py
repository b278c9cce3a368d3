"""Packages of the user's code in a bundle: modules that a pickled model imports besides installed libraries.

A package is a zip file of modules, made from a file, a folder or a wheel. The manifest lists its digest like that of every file.
This module reads and writes such files without running them; `serve_app/inference/code_import.py` imports them.
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
"""Total size in bytes of the unpacked files of one package."""
MAX_PATH = 300
"""Characters in the path of one file."""

_EPOCH = (1980, 1, 1, 0, 0, 0)
"""The time stamp of every file, constant so the same code gives the same bytes."""
_COMPILED = (".so", ".pyd", ".dll", ".dylib", ".pyx")
_LEFT_OUT = ("__pycache__", ".pyc", ".pyo", ".dist-info", ".egg-info", ".data")

Sources = Mapping[str, bytes]
"""The files of packages by path, like `own_steps.py` or `own/steps.py`."""


def pack_package(path: Path) -> tuple[str, bytes]:
    """The name in a bundle and the bytes of the package at `path`: a module, a folder or a wheel. It does not run the code.

    A folder with an `__init__.py` is a package; from any other folder, it takes the modules and packages inside. Raises UsageError
    for a path that cannot be imported from a bundle: no Python, a syntax error, compiled modules, more than MAX_FILES or MAX_BYTES.
    """
    if path.suffix == ".py" and path.is_file():
        files = _bounded(path, [(path.name, path)])
    elif path.suffix == ".whl" and path.is_file():
        files = _files_of_wheel(path)
    elif path.is_dir():
        files = _bounded(path, _files_of_folder(path.resolve()))
    else:
        raise UsageError(f"--package {path} is not a module (.py), a folder or a wheel (.whl)")
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
    """The names of packages among the files of a bundle."""
    return {name for name in names if PACKAGE.fullmatch(name)}


def read_packages(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The sources of all packages among the files of a bundle; empty without packages.

    Raises BundleRefused `load` for a file that is not a package or exceeds the limits of a package.
    """
    sources: dict[str, bytes] = {}
    for name in sorted(package_files(files)):
        try:
            unpacked = _unpacked(files[name])
        except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, OSError, ValueError) as error:
            raise BundleRefused("load", f"{name} is not a usable package ({type(error).__name__})") from None
        if not sources.keys().isdisjoint(unpacked):
            raise BundleRefused("load", f"{name} contains a module that another package of the bundle contains, too")
        sources |= unpacked
    return sources


def top_modules(sources: Iterable[str]) -> frozenset[str]:
    """The names that can be imported: top-level modules, and top-level folders that contain modules."""
    return frozenset(PurePosixPath(path).parts[0].removesuffix(".py") for path in sources if path.endswith(".py"))


def _unpacked(data: bytes) -> dict[str, bytes]:
    """The files of a zip file by path; raises ValueError beyond a limit, and the errors of zipfile."""
    files: dict[str, bytes] = {}
    left = MAX_BYTES
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = [entry for entry in archive.infolist() if not entry.is_dir()]
        if len(entries) > MAX_FILES:
            raise ValueError(f"it holds more than {MAX_FILES} files")
        for entry in entries:
            if not _is_path(entry.filename) or entry.filename in files:
                raise ValueError("it holds a file with an invalid path")
            with archive.open(entry) as file:  # the size in the directory of a zip file may be wrong
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
    """Raise UsageError for files that a replica cannot import."""
    modules = top_modules(files)
    if not modules:
        raise UsageError(f"--package {path} holds no Python module")
    wrong = sorted(name for name in modules if not name.isidentifier() or name.startswith("__"))
    if wrong:
        raise UsageError(f"--package {path}: {wrong[0]} is not a name that Python can import; rename it")
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
                raise UsageError(f"--package {path}: {name} is not valid Python {_place(error)}".rstrip()) from None


def _place(error: Exception) -> str:
    line = getattr(error, "lineno", None)
    return f"(line {line})" if line else ""
