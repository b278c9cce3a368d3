"""Bundles with a pickled model and packages of code: none that is wrong runs, and none runs where no pickle may be opened."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from serve_app.artifacts.code_package import MAX_BYTES, MAX_FILES
from serve_app.artifacts.names import JOBLIB, ONNX
from tests.support.hostile.cases import Case, case, good, proven


def zipped(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def wrong_packages(canary: Path) -> Iterator[Case]:
    """Packages that no replica may import, with a pickle that would import their module."""
    code = f"open({str(canary)!r}, 'w').close()\n".encode()
    right = zipped({"steps_of_a_stranger.py": code})
    encrypted = bytearray(right)
    for signature, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        encrypted[encrypted.index(signature) + at] |= 1
    raws = {
        "empty": b"",
        "no zip file": b"PK",
        "half": right[: len(right) // 2],
        "encrypted": bytes(encrypted),
        "upwards": zipped({"../steps_of_a_stranger.py": code, "steps_of_a_stranger.py": code}),
        "absolute": zipped({"/steps_of_a_stranger.py": code, "steps_of_a_stranger.py": code}),
        "too many files": zipped({f"steps_of_a_stranger/m{at}.py": code for at in range(MAX_FILES + 1)}),
        "a bomb": zipped({"steps_of_a_stranger.py": code, "words.txt": b" " * MAX_BYTES}),
    }
    raws |= {
        f"hides {name}": zipped({f"{name}.py": code}) for name in ("json", "numpy", "sklearn", "serve_app", "joblib", "__main__")
    }
    raws |= {"hides a package": zipped({"sklearn/linear_model.py": code, "steps_of_a_stranger.py": code})}
    for name, raw in raws.items():
        yield case(f"package: {name}", "load", _bundle(raw))
    yield case("two packages of one module", "load", _bundle(right, right))


def forbidden_packages(canary: Path) -> Iterator[Case]:
    """The package is right, and replicas open no pickle."""
    code = f"open({str(canary)!r}, 'w').close()\n".encode()
    yield case("package where nothing is unpickled", "forbidden", _bundle(zipped({"steps_of_a_stranger.py": code})))


def _bundle(*packages: bytes) -> Callable[[Path], str]:
    files, _ = good()
    del files[ONNX]
    pickled = b"csteps_of_a_stranger\nanything\n."
    return proven({**files, JOBLIB: pickled, **{f"package-{at}.zip": raw for at, raw in enumerate(packages)}})
