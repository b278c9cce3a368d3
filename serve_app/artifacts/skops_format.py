"""Models in the format of skops, which executes no code at loading. The module adds up the memory for a file before it parses it.

A file is a zip archive: `schema.json` is a tree of objects, which name arrays among the other members. skops reads a member for
each object that names it, so a small file can demand any amount of memory.
"""

from __future__ import annotations

import io
import os
import resource
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from serve_app.errors import BundleRefused

MAX_GROWTH = 100
"""Largest ratio of the memory for a file to its size; a file beyond it was made to exhaust the memory."""
MAX_MEMBERS = 20_000
MAX_SCHEMA_BYTES = 64 * 1024 * 1024
NODE_BYTES = 4096
"""Memory of one object of the tree while it is loaded; skops keeps several Python objects for each."""
SCHEMA = "schema.json"
TRUSTED = ["serve_app.inference.date_parts.DateCoder", "serve_app.inference.date_parts.DateParts"]
"""This project's classes in a model with dates; they hold only numbers and texts."""
_FAILED, _UNTRUSTED = 3, 4
SCHEMA_GROWTH = 20
"""Memory of a parsed JSON document, in multiples of its bytes."""


MODEL_TYPES = (
    *("numpy.dtype", "functools.partial", "sklearn.utils._bunch.Bunch", "sklearn.utils.validation.check_array"),
    *("sklearn.tree._tree.Tree", "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor"),
    *("sklearn.calibration._CalibratedClassifier", "sklearn.calibration._SigmoidCalibration"),
    *("sklearn.compose._column_transformer.make_column_selector", "sklearn.neural_network._stochastic_optimizers.AdamOptimizer"),
    *("sklearn.model_selection._split.StratifiedKFold", "sklearn.model_selection._split.KFold"),
    *("sklearn.metrics._scorer._PassthroughScorer", "sklearn.metrics._scorer._Scorer", "sklearn.metrics._scorer._CurveScorer"),
    *("sklearn.metrics._classification.balanced_accuracy_score", "sklearn.utils._metadata_requests.MetadataRequest"),
    *("sklearn.utils._metadata_requests.MethodMetadataRequest", "sklearn.neighbors._kd_tree.KDTree"),
    "sklearn.metrics._dist_metrics.EuclideanDistance64",
)
"""Types of scikit-learn's models that skops does not trust by default. The list never comes from a file.

They execute no code of the file. The compiled types copy bytes of the file, so the module loads a file in a separate process.
"""
SECONDS = 120.0
"""Time limit for loading a file."""
BASE_BYTES = 1024**3
"""Memory of the process that loads a file, in addition to that of the model."""


def skops_to_joblib(file: Path, limit: int) -> bytes:
    """The model of a file as a pickle, loaded in a separate process that accepts TRUSTED, MODEL_TYPES and the defaults of skops.

    `limit` is the maximum memory in bytes for loading. Raises BundleRefused `forbidden` or `load`.
    """
    try:
        check_growth(file, limit)
    except BundleRefused:
        raise
    except Exception as error:  # an arbitrary file can cause any error
        raise BundleRefused("load", f"skops cannot load the model in MLflow ({type(error).__name__})") from error
    command = [sys.executable, "-P", "-m", "serve_app.artifacts.skops_format", str(file), str(limit)]
    environment = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
    environment |= {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)), "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(  # noqa: S603, our own module
            command, env=environment, capture_output=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise BundleRefused("load", f"skops did not load the model in MLflow within {SECONDS:g} seconds") from None
    if done.returncode == _UNTRUSTED:
        names = done.stdout.decode(errors="replace")[:300]
        raise BundleRefused("forbidden", f"the model in MLflow holds types that are not trusted, {names}")
    if done.returncode != 0 or len(done.stdout) > limit:
        why = done.stdout.decode(errors="replace")[:100] if done.returncode == _FAILED else f"exit code {done.returncode}"
        raise BundleRefused("load", f"skops cannot load the model in MLflow ({why})")
    return done.stdout


def _convert(file: str, limit: int) -> int:
    """Write the model of the file as a pickle, or the reason of a failure, to standard output; returns the exit code."""
    import joblib
    import skops.io

    answer = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # keeps the output of libraries out of the answer
    memory = BASE_BYTES + 2 * limit
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    buffer = io.BytesIO()
    code = 0
    try:
        untrusted = set(skops.io.get_untrusted_types(file=file)) - {*TRUSTED, *MODEL_TYPES}
        if untrusted:
            buffer.write(", ".join(sorted(untrusted)).encode())
            code = _UNTRUSTED
        else:
            joblib.dump(skops.io.load(file, trusted=[*TRUSTED, *MODEL_TYPES]), buffer)
    except Exception as error:  # an arbitrary file can cause any error
        buffer = io.BytesIO(type(error).__name__.encode())
        code = _FAILED
    answer.write(buffer.getvalue())
    answer.flush()
    return code


def check_growth(file: Path, limit: int) -> None:
    """Refuse a file that needs more memory than `limit` bytes or MAX_GROWTH times its size; raises BundleRefused."""
    most = min(limit, MAX_GROWTH * file.stat().st_size)
    with zipfile.ZipFile(file) as archive:
        members = {entry.filename: entry for entry in archive.infolist()}
        if len(members) > MAX_MEMBERS or len(archive.infolist()) != len(members):
            raise BundleRefused("forbidden", f"the model in MLflow has more than {MAX_MEMBERS} members, or two with the same name")
        _check(sum(entry.file_size for entry in members.values()), most)  # zipfile reads at most this size of each member
        schema = members.get(SCHEMA)
        if schema is None or schema.file_size > MAX_SCHEMA_BYTES:
            raise BundleRefused("forbidden", f"the model in MLflow has no {SCHEMA} of at most {MAX_SCHEMA_BYTES} bytes")
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
        raise BundleRefused("forbidden", f"the model in MLflow needs more than {most} bytes of memory")


def _references(schema: Any) -> Iterator[str]:
    """The member that skops reads for each object, except for an object with the `__id__` of an earlier one."""
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
    """Bytes of memory for one member: the member itself, and the array in it, whose size must match its header.

    An `.npz` member is itself an archive; the function adds up its members in the same way.
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
    """Bytes of the array in an `.npy` file of `size` bytes, by its header; 0 for another file. Refuses a wrong header."""
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
        raise BundleRefused("forbidden", "the model in MLflow has an array whose header does not match its size")
    return int(count * dtype.itemsize)


if __name__ == "__main__":
    os._exit(_convert(sys.argv[1], int(sys.argv[2])))
