"""The file of a model that was fitted elsewhere: this module inspects it first, then loads it.

Loading a pickle runs the code that it names. So `read` finds the names without running code, and refuses names that no model needs.
`load` is called in a process that may die.
"""

from __future__ import annotations

import io
import tempfile
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve_app.artifacts.code_package import pack_package
from serve_app.artifacts.manifest import MAX_BUNDLE_BYTES, sha256
from serve_app.artifacts.memory_limit import memory_limit
from serve_app.artifacts.regular_file import UnfitFile, read_regular
from serve_app.artifacts.skops_format import MODEL_TYPES, TRUSTED, check_growth
from serve_app.errors import BundleRefused, UsageError
from serve_app.inference.code_import import packages_imported
from serve_app.printable import printable
from training.boosters import load_native
from training.pickle_contents import PickleContents, look, missing_modules

NATIVE = {".ubj": "xgboost", ".json": "xgboost", ".txt": "lightgbm", ".cbm": "catboost"}
"""The formats of the boosting libraries, by file extension."""

SKOPS_TYPES = (
    *(*TRUSTED, *MODEL_TYPES, "collections.OrderedDict", "sklearn.ensemble._hist_gradient_boosting.binning._BinMapper"),
    *("sklearn._loss.link.Interval", "sklearn._loss.link.LogitLink", "sklearn._loss.link.IdentityLink"),
    *("sklearn._loss.link.MultinomialLogit", "sklearn._loss.loss.HalfBinomialLoss"),
    *("sklearn._loss.loss.HalfMultinomialLoss", "sklearn._loss.loss.HalfSquaredError"),
    *("xgboost.core.Booster", "xgboost.sklearn.XGBClassifier", "xgboost.sklearn.XGBRegressor", "xgboost.sklearn.XGBRFClassifier"),
    *("xgboost.sklearn.XGBRFRegressor", "lightgbm.basic.Booster", "lightgbm.sklearn.LGBMClassifier"),
    *("lightgbm.sklearn.LGBMRegressor", "catboost.core.CatBoostClassifier", "catboost.core.CatBoostRegressor"),
)
"""Types that a skops file may name besides those that skops trusts. This list is fixed and never comes from a file."""


@dataclass(frozen=True, slots=True)
class ModelFile:
    """The bytes of a model with the result of the inspection; `contents` is None for a format that is not a pickle."""

    path: Path
    data: bytes
    sha256: str
    file_format: str
    contents: PickleContents | None = None

    @property
    def executed(self) -> str:
        """The code that runs when the file is loaded, as text."""
        if self.contents is None:
            return f"nothing of the file: {self.file_format} holds data"
        packages = ", ".join(self.contents.packages) or "Python itself"
        code = " and functions that the file itself holds" if self.contents.holds_code else ""
        return f"a {self.file_format} file: code of {packages}{code}"


def read(path: Path, file_format: str | None = None) -> ModelFile:
    """Inspect the file without running its code; `file_format` replaces the format of its extension. Raises UsageError."""
    data = _bytes(path)
    digest = sha256(data)
    native = file_format if file_format in NATIVE.values() else NATIVE.get(path.suffix.lower())
    if native is not None:
        return ModelFile(path, data, digest, native)
    if zipfile.is_zipfile(io.BytesIO(data)):
        return ModelFile(path, data, digest, "skops")
    contents = look(data)
    check_names(contents, path.name)
    kind = "cloudpickle" if contents.holds_code else "joblib" if contents.has_arrays_of_joblib else "pickle"
    return ModelFile(path, data, digest, kind, contents)


def check_names(contents: PickleContents, name: str) -> None:
    """Refuse a pickle that would run commands, that needs missing code, or that another scikit-learn saved."""
    if contents.hostile:
        raise UsageError(
            f"{name} names {', '.join(contents.hostile[:5])}, which no model needs: it was not opened; do not trust its source"
        )
    if contents.of_main:
        names = ", ".join(each.removeprefix("__main__.") for each in contents.of_main[:5])
        raise UsageError(
            f"{name} needs {names} of the program that saved it: move that code into a module and add it with --package, "
            "or publish the model where it was made (`from training import publish`)"
        )
    missing = list(missing_modules(contents))
    if missing:
        raise UsageError(
            f"{name} needs the module {', '.join(missing[:5])}, which is not installed: add it with --package "
            f"{missing[0].partition('.')[0]}.py (a module, a folder or a wheel), or install it"
        )
    _check_versions(contents, name)


def _check_versions(contents: PickleContents, name: str) -> None:
    import sklearn

    own = sklearn.__version__
    for version in contents.sklearn_versions:
        if version.split(".")[:2] != own.split(".")[:2]:
            raise UsageError(
                f"{name} was saved with scikit-learn {version}, and {own} is installed here and in the serving image: "
                f"fit and save the model again with scikit-learn {'.'.join(own.split('.')[:2])}"
            )


def pack(packages: Sequence[Path]) -> dict[str, bytes]:
    """The user's modules, folders and wheels as files of a bundle; raises UsageError for any other path."""
    files: dict[str, bytes] = {}
    for path in packages:
        name, data = pack_package(path)
        if name in files:
            raise UsageError(f"two packages have the name {path.stem}: put them into one folder")
        files[name] = data
    return files


@contextmanager
def imported(packages: Mapping[str, bytes]) -> Iterator[None]:
    """Make the modules of the packages importable inside the block, as in a replica. Raises UsageError."""
    try:
        with packages_imported(packages):
            yield
    except BundleRefused as error:
        if error.reason != "load":
            raise
        raise UsageError(f"--package: {error}") from None


def load(file: ModelFile) -> Any:
    """Load the model of an inspected file; runs its code. Raises UsageError."""
    if file.file_format in NATIVE.values():
        return _load_native(file)
    if file.file_format == "skops":
        return _load_skops(file)
    import joblib
    from sklearn.exceptions import InconsistentVersionWarning

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", InconsistentVersionWarning)
            return joblib.load(io.BytesIO(file.data))
    except InconsistentVersionWarning as error:
        raise UsageError(
            f"{file.path.name} was saved with scikit-learn {error.original_sklearn_version}: save it again here"
        ) from None
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{file.path.name} needs the module {error.name}, which is not installed: add it with --package, or install it"
        ) from None
    except MemoryError:
        raise
    except Exception as error:  # any: the file may hold anything
        raise UsageError(f"{file.path.name} cannot be loaded ({type(error).__name__}: {_one_line(error)})") from error


def _load_native(file: ModelFile) -> Any:
    if NATIVE.get(file.path.suffix.lower()) == file.file_format:
        return load_native(file.path)
    ending = next(ending for ending, library in NATIVE.items() if library == file.file_format)
    with tempfile.TemporaryDirectory() as folder:  # MLflow uses other file extensions
        path = Path(folder, f"model{ending}")
        path.write_bytes(file.data)
        return load_native(path)


def _load_skops(file: ModelFile) -> Any:
    import skops.io

    try:
        check_growth(file.path, memory_limit() // 4)
        names = skops.io.get_untrusted_types(data=file.data)
        unknown = sorted(set(names) - set(SKOPS_TYPES))
        if not unknown:
            return skops.io.loads(file.data, trusted=list(names))
    except BundleRefused as error:
        raise UsageError(f"{file.path.name}: {error}") from None
    except Exception as error:  # any: the file may hold anything
        raise UsageError(f"{file.path.name} cannot be loaded by skops ({type(error).__name__}: {_one_line(error)})") from error
    listed = printable(", ".join(unknown[:8]))
    raise UsageError(f"{file.path.name} names types that are not trusted: {listed}; save it with joblib")


def _bytes(path: Path) -> bytes:
    if path.is_dir():
        raise UsageError(f"{path} is a folder without an MLmodel file: give the file of the model")
    try:
        return read_regular(path.resolve(), MAX_BUNDLE_BYTES)
    except UnfitFile as error:
        raise UsageError(f"the model {path} cannot be read: {error}") from None
    except OSError as error:
        raise UsageError(f"the model {path} cannot be read: {error.strerror}") from None


def _one_line(error: object) -> str:
    return " ".join(str(error).split())[:200]
