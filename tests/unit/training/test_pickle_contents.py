"""What a pickle names is found without running it."""

from __future__ import annotations

import datetime as dt
import io
import os
import pickle
from pathlib import Path
from typing import Any

import cloudpickle
import joblib
import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from serve_app.errors import UsageError
from training import pickle_contents
from training.pickle_contents import look

pytestmark = pytest.mark.unit


class Attack:
    """Runs a command when it is unpickled by anything but a look."""

    def __init__(self, command: Any, *arguments: Any) -> None:
        self._call = (command, arguments)

    def __reduce__(self) -> Any:
        return self._call


def model() -> Any:
    texts = np.array([["a"], ["b"], ["c"], ["a"]], dtype=object)
    return make_pipeline(OneHotEncoder(), RandomForestClassifier(3, random_state=0)).fit(texts, [0, 1, 0, 1])


def joblib_bytes(value: Any, compress: Any = 0) -> bytes:
    buffer = io.BytesIO()
    joblib.dump(value, buffer, compress=compress)
    return buffer.getvalue()


@pytest.mark.parametrize("compress", [0, ("zlib", 3), ("gzip", 3), ("bz2", 3), ("lzma", 3), ("xz", 3)])
def test_a_joblib_file_is_read_through_every_compression(compress: Any) -> None:
    contents = look(joblib_bytes(model(), compress))
    assert contents.top == "sklearn.pipeline.Pipeline"
    assert "sklearn.ensemble._forest.RandomForestClassifier" in contents.names
    assert len(contents.sklearn_versions) == 1
    assert contents.has_arrays_of_joblib
    assert not contents.hostile
    assert not contents.foreign


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_of_every_protocol_is_read(protocol: int) -> None:
    contents = look(pickle.dumps(model(), protocol=protocol))
    assert contents.top == "sklearn.pipeline.Pipeline"
    assert contents.packages == ("numpy", "sklearn")
    assert not contents.foreign


@pytest.mark.parametrize("protocol", range(6))
def test_an_attack_is_named_and_does_not_run(tmp_path: Path, protocol: int) -> None:
    trace = tmp_path / "ran"
    contents = look(pickle.dumps([model(), Attack(os.system, f"touch {trace}")], protocol=protocol))
    assert contents.hostile == ("posix.system",)
    assert not trace.exists()


def test_an_attack_inside_an_array_of_objects_is_named(tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    array = np.array([Attack(os.system, f"touch {trace}"), "b"], dtype=object)
    assert look(joblib_bytes({"array": array}, ("zlib", 3))).hostile == ("posix.system",)
    assert not trace.exists()


@pytest.mark.parametrize("function", [eval, exec, open, np.load, joblib.load, os.remove, __import__])
def test_functions_that_no_model_needs_are_hostile(function: Any) -> None:
    assert len(look(pickle.dumps(Attack(function, "1"))).hostile) == 1


def test_classes_of_python_that_models_hold_are_not_hostile() -> None:
    value = [dt.date(2026, 1, 1), {1, 2}, frozenset("a"), complex(1, 2), slice(1, 2), Path("a"), np.float64(1.5)]
    assert look(pickle.dumps(value)).hostile == ()


def test_code_of_the_file_itself_is_told() -> None:
    contents = look(cloudpickle.dumps(lambda value: value))
    assert contents.holds_code
    assert not contents.foreign


@pytest.mark.parametrize(
    "damage",
    [lambda data: b"", lambda data: b"no pickle", lambda data: data[:400], lambda data: data[:-10], lambda data: data[10:]],
)
def test_what_is_no_whole_pickle_is_refused(damage: Any) -> None:
    with pytest.raises(UsageError):
        look(damage(joblib_bytes(model(), ("zlib", 3))))


def test_a_file_that_grows_beyond_the_bound_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickle_contents, "MAX_BYTES", 100_000)
    with pytest.raises(UsageError):
        look(joblib_bytes({"zeros": np.zeros(1_000_000)}, ("zlib", 9)))


def test_a_header_that_promises_more_numbers_than_the_file_has_costs_no_memory() -> None:
    data = joblib_bytes(np.zeros(1000))
    assert data.count(b"M\xe8\x03") == 1  # the length 1000, as two bytes
    with pytest.raises(UsageError):
        look(data.replace(b"M\xe8\x03", b"M\xff\xff"))
