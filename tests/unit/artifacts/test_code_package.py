"""Packages of code: what is packed, and what is refused before anything of it runs."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path

import pytest

from serve_app.artifacts import code_package
from serve_app.artifacts.code_package import pack_package, read_packages, top_modules
from serve_app.artifacts.names import JOBLIB, METRICS, ONNX
from serve_app.artifacts.read_policy import used_files
from serve_app.errors import BundleRefused, UsageError
from tests.support.policies import load_policy


def tree(folder: Path, **files: str) -> Path:
    """Files by their paths, with `__` for a slash and the ending left out."""
    for name, text in files.items():
        path = folder / (name.replace("__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def zipped(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def test_a_module_becomes_a_file_of_the_bundle_and_back(tmp_path: Path) -> None:
    tree(tmp_path, own_steps="x = 1\n")
    name, data = pack_package(tmp_path / "own_steps.py")
    assert name == "package-own_steps.zip"
    assert read_packages({name: data, JOBLIB: b""}) == {"own_steps.py": b"x = 1\n"}


def test_the_same_code_gives_the_same_bytes_whenever_it_is_packed(tmp_path: Path) -> None:
    first, second = tree(tmp_path / "a" / "own", b="", a=""), tree(tmp_path / "b" / "own", a="", b="")
    assert pack_package(first) == pack_package(second)


def test_of_a_package_its_folder_is_taken_with_data_and_without_caches(tmp_path: Path) -> None:
    folder = tree(tmp_path / "own", init="", steps__x="")
    (folder / "init.py").rename(folder / "__init__.py")
    (folder / "words.json").write_text("[]")
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "x.pyc").write_bytes(b"")
    (folder / ".git").mkdir()
    (folder / ".git" / "secret").write_text("")
    sources = read_packages(dict([pack_package(folder)]))
    assert set(sources) == {"own/__init__.py", "own/steps/x.py", "own/words.json"}
    assert top_modules(sources) == {"own"}


def test_of_a_folder_of_modules_the_modules_and_packages_are_taken(tmp_path: Path) -> None:
    tree(tmp_path, one="", two__init="", data__three="")
    (tmp_path / "two" / "init.py").rename(tmp_path / "two" / "__init__.py")
    (tmp_path / "table.csv").write_text("")
    assert set(read_packages(dict([pack_package(tmp_path)]))) == {"one.py", "two/__init__.py"}


def test_of_a_wheel_the_modules_are_taken_and_not_its_description(tmp_path: Path) -> None:
    wheel = tmp_path / "own-1.0-py3-none-any.whl"
    wheel.write_bytes(zipped(**{"own/__init__.py": b"", "own-1.0.dist-info/METADATA": b"x"}))
    name, data = pack_package(wheel)
    assert name == "package-own-1.0-py3-none-any.zip"
    assert set(read_packages({name: data})) == {"own/__init__.py"}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("table.csv", b""),
        ("my-steps.py", b""),
        ("__main__.py", b""),
        ("broken.py", b"def f(:"),
        ("nul.py", b"x = 1\0"),
        ("no.whl", b"no zip file"),
        ("compiled.whl", zipped(**{"own/__init__.py": b"", "own/fast.so": b""})),
        ("empty.whl", zipped()),
        ("upwards.whl", zipped(**{"../own.py": b""})),
    ],
)
def test_what_no_replica_could_import_is_refused_at_once(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=name):
        pack_package(tmp_path / name)


def test_a_folder_without_modules_and_a_path_that_is_nothing_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing.py"):
        with pytest.raises(UsageError):
            pack_package(path)


def test_a_folder_that_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_package, "MAX_BYTES", 10)
    with pytest.raises(UsageError):
        pack_package(tree(tmp_path, one="x = 'ten letters'") / "one.py")


def lying(data: bytes) -> bytes:
    """The zip file with a directory that says that its files are small."""
    at = data.index(b"PK\x01\x02")
    return data[: at + 24] + struct.pack("<I", 1) + data[at + 28 :]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no zip file",
        zipped(**{"own.py": b"x"})[:-10],
        zipped(**{"/etc/passwd": b""}),
        zipped(**{"a/../own.py": b""}),
        zipped(**{"a\\own.py": b""}),
        zipped(**{"x" * 301: b""}),
        zipped(**{f"m{at}.py": b"" for at in range(code_package.MAX_FILES + 1)}),
        zipped(**{"bomb.py": b" " * (code_package.MAX_BYTES + 1)}),
        lying(zipped(**{"bomb.py": b" " * (code_package.MAX_BYTES + 1)})),
    ],
    ids=range(10),
)
def test_a_file_that_is_no_package_is_refused_within_bounds(data: bytes) -> None:
    with pytest.raises(BundleRefused) as refused:
        read_packages({"package-own.zip": data})
    assert refused.value.reason == "load"


def test_two_packages_with_one_module_are_refused() -> None:
    with pytest.raises(BundleRefused):
        read_packages({"package-a.zip": zipped(**{"own.py": b"1"}), "package-b.zip": zipped(**{"own.py": b"2"})})


def test_packages_are_read_with_a_pickle_only() -> None:
    names = (JOBLIB, ONNX, METRICS, "package-own.zip", "package-.txt")
    assert used_files(names, load_policy()) == {ONNX, METRICS}
    assert used_files(names, load_policy(backend="scikit-learn")) == {JOBLIB, METRICS, "package-own.zip"}
    assert used_files(names, None) == {JOBLIB, ONNX, METRICS, "package-own.zip"}
