"""Bundles with a pickle that runs code when it is loaded."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import pickle
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import joblib
import numpy as np
from sklearn.pipeline import make_pipeline

from serve_app.artifacts.manifest import describe
from serve_app.artifacts.names import JOBLIB, ONNX
from tests.support.hostile.cases import VERSION, Case, case, good, proven, put
from tests.support.models import bundle_files, bundle_manifest, logistic


class Trap:
    """Whoever unpickles it runs a function with arguments."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self._call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self._call


def traps(canary: Path) -> dict[str, bytes]:
    """Pickles whose loading would create the canary file, in all the forms that joblib reads."""
    path = str(canary)
    code = f"open({path!r}, 'w').close()"
    objects: dict[str, object] = {
        "system": Trap(os.system, f"touch {path}"),
        "exec": Trap(exec, code),
        "eval": Trap(eval, code),
        "open": Trap(open, path, "w"),
        "touch": Trap(Path.touch, canary),
        "mkdir": Trap(os.mkdir, path),
        "symlink": Trap(os.symlink, "/", path),
        "in a list": [1, 2, Trap(open, path, "w")],
        "in an array": np.array([Trap(open, path, "w")], dtype=object),
        "in a pipeline": _pipeline(Trap(open, path, "w")),
    }
    found = {}
    for name, trap in objects.items():
        buffer = io.BytesIO()
        joblib.dump(trap, buffer)
        raw = buffer.getvalue()
        found[name] = raw
        found |= {f"{name}, zlib": zlib.compress(raw), f"{name}, gzip": gzip.compress(raw), f"{name}, bz2": bz2.compress(raw)}
        found |= {f"{name}, xz": lzma.compress(raw), f"{name}, lzma": lzma.compress(raw, lzma.FORMAT_ALONE)}
        if "array" not in name:
            found |= {f"{name}, protocol {number}": pickle.dumps(trap, number) for number in (0, 2, 4)}
    return found


def _pipeline(step: object) -> object:
    made = make_pipeline("passthrough")
    made.steps = [("trap", step)]
    return made


def unproven_pickles(canary: Path) -> Iterator[Case]:
    """Pickles put in the place of a published model: the digest tells before anything is unpickled."""
    files = dict(bundle_files(logistic(0.5)))
    manifest = describe(files, bundle_manifest(version=VERSION))
    for name, raw in traps(canary).items():

        def build(root: Path, raw: bytes = raw) -> str:
            pointer = put(root, files, manifest)
            (root / pointer / JOBLIB).write_bytes(raw)
            return pointer

        yield case(f"pickle in a published bundle: {name}", "digest", build)


def proven_pickles(canary: Path) -> Iterator[Case]:
    """Pickles in bundles whose digests are right: for replicas that unpickle nothing."""
    files, _ = good()
    del files[ONNX]
    for name, raw in traps(canary).items():
        yield case(f"pickle with right digests: {name}", "forbidden", proven({**files, JOBLIB: raw}))


def pickles_of_other_libraries(canary: Path) -> Iterator[Case]:
    """The versions are compared before anything is unpickled."""
    files, _ = good()
    del files[ONNX]
    trap = next(iter(traps(canary).values()))
    for libraries in (
        *({"scikit-learn": version} for version in ("0.24.2", "1.0", "1.8.9", "2.0.0", "1.10.0", "", "latest", 1.9e9)),
        *({"numpy": version} for version in ("1.26.4", "3.0.0", "x")),
    ):
        yield case(f"made with {libraries}", "libraries manifest", proven({**files, JOBLIB: trap}, libraries=libraries))
