"""Bundles that are damaged, and pointers to what is no bundle."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from serve_app.artifacts.bundle import folder_name
from serve_app.artifacts.manifest import describe, sha256
from serve_app.artifacts.names import MANIFEST
from tests.support.hostile.cases import VERSION, Case, case, good, put
from tests.support.models import bundle_files, bundle_manifest, forest


def damaged(flips: int) -> Iterator[Case]:
    """Bytes that are not those that were published: the digest tells, and nothing is parsed."""
    files, manifest = good()
    whole = {**files, MANIFEST: manifest}
    name = folder_name(VERSION, sha256(manifest))

    def changed(file: str, data: bytes) -> Callable[[Path], str]:
        def build(root: Path) -> str:
            pointer = put(root, files, manifest, name=name)
            (root / pointer / file).write_bytes(data)
            return pointer

        return build

    for file, data in whole.items():
        for position in np.linspace(0, len(data) - 1, min(flips, len(data)), dtype=int).tolist():
            bit = 1 << position % 8
            flipped = data[:position] + bytes([data[position] ^ bit]) + data[position + 1 :]
            yield case(f"{file}: bit flipped at {position}", "digest", changed(file, flipped))
        for length in sorted({0, 1, len(data) // 4, len(data) // 2, len(data) - 1}):
            yield case(f"{file}: cut to {length} bytes", "digest", changed(file, data[:length]))
        for extra in (b"\0", b" ", b"\n", data):
            yield case(f"{file}: {len(extra)} bytes more", "digest", changed(file, data + extra))
    for one, other in itertools.permutations(whole, 2):
        yield case(f"{one} holds {other}", "digest", changed(one, whole[other]))
    other_files, other_manifest = dict(bundle_files(forest(), onnx=True)), describe(bundle_files(forest()), bundle_manifest())
    for file, data in {**other_files, MANIFEST: other_manifest}.items():
        if data != whole[file]:
            yield case(f"{file} of another version", "digest", changed(file, data))
    yield from _odd_files(files, manifest, name)


def _link_to(target: str, path: Path) -> None:
    path.symlink_to(target)


def _odd_files(files: Mapping[str, bytes], manifest: bytes, name: str) -> Iterator[Case]:
    """Files that are no plain files, or lead out of the store."""

    def replaced(file: str, replace: Callable[[Path], object]) -> Callable[[Path], str]:
        def build(root: Path) -> str:
            pointer = put(root, files, manifest, name=name)
            path = root / pointer / file
            path.unlink()
            replace(path)
            return pointer

        return build

    def elsewhere(path: Path) -> None:
        data = files.get(path.name, manifest)
        outside = path.parents[3] / "outside"
        outside.mkdir(exist_ok=True)
        (outside / path.name).write_bytes(data)  # the right bytes, in a place that nobody proved
        path.symlink_to(outside / path.name)

    def giant(path: Path) -> None:
        with path.open("wb") as sparse:
            sparse.truncate(10**10)

    for file in (*files, MANIFEST):
        yield case(f"{file} is missing", "unreadable", replaced(file, lambda path: None))
        yield case(f"{file} leads out of the store", "unreadable", replaced(file, elsewhere))
        for target in ("/etc/passwd", "/dev/zero", "../../../../etc/passwd", ".", file, "/proc/self/mem"):
            yield case(f"{file} leads to {target}", "unreadable", replaced(file, partial(_link_to, target)))
        yield case(f"{file} is a folder", "digest unreadable", replaced(file, lambda path: path.mkdir()))
        yield case(f"{file} is a pipe", "digest", replaced(file, lambda path: os.mkfifo(path)))
        yield case(f"{file} has ten gigabytes", "digest", replaced(file, giant))


def pointers() -> Iterator[Case]:
    """Pointers to what is no bundle of this store."""
    files, manifest = good()
    name = folder_name(VERSION, sha256(manifest))
    other = folder_name(VERSION, "0" * 64)
    for target in (
        *(f"../outside/{name}", f"/tmp/{name}", f"bundles/../bundles/{name}", f"./bundles/{name}", f"bundles//{name}", name),
        *("bundles", "bundles/", "bundles/..", "..", ".", "/", "/etc", "current", "bundles/current", "x" * 200, "bundles/ï-\udcff"),
        *(f"bundles/{name}/", f"bundles/{name}/..", f"bundles/{name}x", f"bundles/{name[:-1]}", f"bundles/{name.upper()}"),
        *(
            f"bundles/0{name}",
            f"bundles/-{name}",
            f"bundles/{VERSION}.0-{sha256(manifest)}",
            f"bundles/{VERSION}_{sha256(manifest)}",
        ),
        f"bundles/{'9' * 19}-{sha256(manifest)}",
    ):

        def build(root: Path, target: str = target) -> str:
            put(root, files, manifest)
            return target

        yield case(f"pointer to {target[:60]!r}", "pointer", build)
    yield case("pointer to a version that is gone", "unreadable", lambda root: f"bundles/{other}")

    def linked(root: Path) -> str:
        put(root.parent / "outside", files, manifest)
        link = root / "bundles" / name
        shutil.rmtree(link, ignore_errors=True)
        link.symlink_to(root.parent / "outside" / "bundles" / name)
        return f"bundles/{name}"

    yield case("the folder leads out of the store", "unreadable", linked)
    yield case("another version's name", "digest", lambda root: put(root, files, manifest, name=other))
    for version in (1, 3, 9, 10**17):
        yield case(
            f"version {VERSION} replayed as {version}",
            "manifest",
            partial(put, files=files, manifest=manifest, version=version),
        )
