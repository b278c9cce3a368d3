"""The store in an archive: a snapshot of the store, and the restore into an empty store or beside other bundles.

A snapshot opens every file while it holds the store's lock, and reads them later. A training that publishes and removes the oldest
bundle therefore does not wait for a slow copy, and does not change it.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import resource
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from serve_app.artifacts.archive import MAX_SIZE, PIECE_BYTES, ArchiveError, FileLine, Section, Source, hashed
from serve_app.artifacts.bundle import parse_folder
from serve_app.artifacts.manifest import MAX_MANIFEST_BYTES
from serve_app.artifacts.manifest_bounds import MAX_NAME
from serve_app.artifacts.names import LEGACY_FILES, MANIFEST, REPORT, SEAL
from serve_app.artifacts.regular_file import UnfitFile, open_folder, open_regular
from serve_app.artifacts.signing import MAX_SEAL_BYTES
from serve_app.artifacts.staging import check_space, move_missing, staging, unpack
from serve_app.artifacts.store import BUNDLES, Check, Entry, Store
from serve_app.errors import StoreError

POINTER = "pointer"
PLAIN = "plain"
"""The pointer of a store with a model in the legacy layout and without bundles."""
_ROOT_FILE = re.compile(rf"{re.escape(REPORT)}|(replaced-)?({'|'.join(map(re.escape, LEGACY_FILES))})")
"""Files beside the bundles."""


@dataclass(frozen=True, slots=True)
class StoreSnapshot:
    """The files of a store at one moment; `damaged` names the versions that the snapshot leaves out."""

    sources: list[Source]
    details: Mapping[str, object]
    damaged: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Restored:
    """The numbers of bundles or files that were added and that existed before."""

    added: int
    existing: int


def snapshot(store: Store, handles: contextlib.ExitStack) -> StoreSnapshot:
    """The store's undamaged bundles, its pointer and the files beside the bundles, readable until `handles` are closed.

    Raises StoreError when the served version is damaged, or when the store cannot be read.
    """
    if not (store.root / BUNDLES).is_dir():
        return _plain_snapshot(store, handles)
    _allow_many_files()
    with store.locked():
        pointer, entries = store.pointer(), store.entries()
        opened = {entry.folder.name: _open_bundle(entry, handles) for entry in entries}
        beside = _open_beside(store.root, handles, links=False)
    bundles = {
        name: [hashed(f"{BUNDLES}/{name}/{file}", _reader(handle)) for file, handle in files] for name, files in opened.items()
    }
    damaged = [entry for entry in entries if not _is_whole(entry, bundles[entry.folder.name])]
    served = next((entry for entry in damaged if entry.served), None)
    if served is not None:
        raise StoreError(
            f"the served version {served.version} is damaged: serve another version (`rollback`), then run the backup again"
        )
    whole = [entry for entry in entries if entry not in damaged]
    sources = [source for entry in whole for source in bundles[entry.folder.name]]
    sources += [hashed(name, _reader(handle)) for name, handle in beside]
    details = {POINTER: _described(pointer), "versions": [entry.version for entry in whole]}
    return StoreSnapshot(sources, details, tuple(entry.version for entry in damaged))


def check_target(store: Store, *, merge: bool) -> None:
    """Raise StoreError when the store holds a model, unless `merge` allows it."""
    if not merge and (store.pointer() is not None or store.entries()):
        raise StoreError(
            f"{store.root} already holds models, so nothing was restored: restore into an empty store, "
            "or add --merge to restore only what is missing"
        )


def restore(section: Section, store: Store, *, merge: bool = False, check: Check | None = None) -> Restored:
    """Put the bundles of a section into the store, then set the pointer; a store that serves a model keeps its pointer.

    `check` may refuse the version to serve. Raises ArchiveError and StoreError; the store is unchanged then.
    """
    check_target(store, merge=merge)
    bundles, pointer = _contents(section)
    held = {entry.folder.name for entry in store.entries()}
    _check_versions(bundles, held)
    missing = bundles - held
    store.root.mkdir(parents=True, exist_ok=True)

    def wanted(line: FileLine) -> bool:
        parts = line.name.split("/")
        return parts[0] != BUNDLES or parts[1] in missing

    with staging(store.root) as folder:
        check_space(folder, filter(wanted, section.lines()))
        (folder / BUNDLES).mkdir()
        written = unpack(section, folder, wanted=wanted, mode=0o444)
        served = pointer.removeprefix(f"{BUNDLES}/") if pointer not in (None, PLAIN) else None
        store.take_over(Store(folder), sorted(missing), served, held=held, check=check)
        # With a pointer, the legacy names are links from `take_over`. The description moves last, after its model.
        beside = [line for line in written if "/" not in line.name]
        move_missing(sorted(beside, key=lambda line: line.name == MANIFEST), folder, store.root)
    return Restored(len(missing), len(bundles & held))


def _contents(section: Section) -> tuple[set[str], str | None]:
    """Names of the bundles and the pointer of a section; raises ArchiveError for files that do not belong in a store."""
    bundles: set[str] = set()
    for line in section.lines():
        match line.name.split("/"):
            case ["bundles", folder, file] if parse_folder(folder) and len(file) <= MAX_NAME:
                bundles.add(folder)
            case [name] if _ROOT_FILE.fullmatch(name):
                pass
            case _:
                raise ArchiveError("the archive contains files that do not belong in a store")
    pointer = section.summary.details.get(POINTER)
    if pointer not in (None, PLAIN, *(f"{BUNDLES}/{name}" for name in bundles)):
        raise ArchiveError("the pointer of the archive does not name a bundle of the archive")
    return bundles, pointer


def _check_versions(bundles: set[str], held: set[str]) -> None:
    """Raise StoreError when the archive and the store use a version number for different models."""
    names: dict[int, str] = {}
    for name in sorted(bundles | held):
        parsed = parse_folder(name)
        assert parsed is not None
        if names.setdefault(parsed[0], name) != name:
            raise StoreError(
                f"the archive and the store hold different models as version {parsed[0]}, so nothing was restored: "
                "restore into an empty store"
            )


def _plain_snapshot(store: Store, handles: contextlib.ExitStack) -> StoreSnapshot:
    """A folder without bundles: a model in the legacy layout, or nothing."""
    beside = _open_beside(store.root, handles, links=True) if store.root.is_dir() else []
    sources = [hashed(name, _reader(handle)) for name, handle in beside]
    return StoreSnapshot(sources, {POINTER: _described(store.pointer()), "versions": []})


def _described(pointer: str | None) -> str | None:
    return PLAIN if pointer is not None and pointer.startswith("plain:") else pointer


def _open_bundle(entry: Entry, handles: contextlib.ExitStack) -> list[tuple[str, int]]:
    """The files of a bundle that its manifest names, its manifest and its seal, without those that cannot be opened."""
    if entry.manifest is None:
        return []
    opened = []
    with contextlib.suppress(OSError):
        folder = open_folder(entry.folder)
        try:
            limits = {
                MANIFEST: MAX_MANIFEST_BYTES,
                SEAL: MAX_SEAL_BYTES,
                **{name: file.size for name, file in entry.manifest.files.items()},
            }
            for name, limit in limits.items():
                with contextlib.suppress(FileNotFoundError, UnfitFile):
                    opened.append((name, _open(name, handles, folder, limit=limit)))
        finally:
            os.close(folder)
    return opened


def _is_whole(entry: Entry, sources: list[Source]) -> bool:
    if entry.manifest is None:
        return False
    lines = {source.line.name.rpartition("/")[2]: source.line for source in sources}
    files = all(
        name in lines and (lines[name].size, lines[name].sha256) == (file.size, file.sha256)
        for name, file in entry.manifest.files.items()
    )
    return files and MANIFEST in lines and lines[MANIFEST].sha256 == entry.digest


def _open_beside(root: Path, handles: contextlib.ExitStack, *, links: bool) -> list[tuple[str, int]]:
    """The files beside the bundles. In a legacy layout they may be `links` inside the folder, as in a mounted ConfigMap."""
    opened = []
    for name in sorted(filter(_ROOT_FILE.fullmatch, os.listdir(root))):
        path = Path(os.path.realpath(root / name)) if links else root / name
        if not path.is_symlink() and path.is_relative_to(os.path.realpath(root) if links else root):
            with contextlib.suppress(FileNotFoundError, UnfitFile):
                opened.append((name, _open(path, handles)))
    return opened


def _open(path: Path | str, handles: contextlib.ExitStack, folder: int | None = None, *, limit: int = MAX_SIZE) -> int:
    handle, _ = handles.enter_context(open_regular(path, limit, folder=folder))
    return handle


def _reader(handle: int) -> functools.partial[Iterator[bytes]]:
    return functools.partial(_pieces, handle)


def _pieces(handle: int) -> Iterator[bytes]:
    """The bytes of an open file; each call starts at the beginning."""
    offset = 0
    while piece := os.pread(handle, PIECE_BYTES, offset):
        offset += len(piece)
        yield piece


def _allow_many_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
