"""What must not be served."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import sklearn

from serve_app.artifacts.bundle import Bundle
from serve_app.artifacts.names import GOLDEN, JOBLIB, ONNX
from serve_app.artifacts.signature import Feature
from serve_app.errors import BundleRefused
from serve_app.inference.policy import LoadPolicy
from serve_app.inference.predictor import open_predictor
from tests.support.bundles import IRIS, bundle
from tests.support.models import (
    A_FLOWER,
    bundle_files,
    bundle_manifest,
    diabetes_signature,
    dumped,
    forest,
    iris_signature,
    linear,
    without_probabilities,
)
from tests.support.policies import ALLOW_ALL, load_policy


def refused(candidate: Bundle, policy: LoadPolicy = ALLOW_ALL) -> str:
    with pytest.raises(BundleRefused) as error:
        open_predictor(candidate, policy)
    assert error.value.final
    return error.value.reason


@pytest.mark.parametrize("onnx", [True, False], ids=["onnx", "scikit-learn"])
def test_a_model_that_does_not_repeat_its_golden_examples_is_refused(onnx: bool) -> None:
    other = bundle_files(forest(seed=9))[GOLDEN]
    assert refused(bundle(forest(), onnx=onnx, files={GOLDEN: other})) == "golden"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"{}",
        b'{"rows": [], "scores": [1]}',
        b'{"rows": [{}], "scores": [[1,0,0]]}',
        b'{"rows": 3, "scores": 3}',
        orjson.dumps({"rows": [A_FLOWER], "scores": [["a", "b", "c"]]}),
        orjson.dumps({"rows": [A_FLOWER], "scores": [[1.0, 0.0]]}),
    ],
    ids=str,
)
def test_golden_examples_that_cannot_be_replayed_refuse_the_model(raw: bytes) -> None:
    assert refused(bundle(forest(), files={GOLDEN: raw})) == "golden"


def test_a_model_without_golden_examples_is_served() -> None:
    assert open_predictor(bundle(forest(), golden=False), ALLOW_ALL).kind == "scikit-learn"


@pytest.mark.parametrize(
    "libraries", [{"scikit-learn": "0.24.2"}, {"scikit-learn": "2.0"}, {"numpy": "1.26.4"}, {"scikit-learn": "1"}], ids=str
)
def test_a_pickle_of_other_libraries_is_refused_before_it_is_opened(libraries: dict[str, Any]) -> None:
    assert refused(bundle(forest(), files={JOBLIB: b"never looked at"}, libraries=libraries)) == "libraries"


@pytest.mark.parametrize(
    "libraries", [{}, {"python": "2.7"}, {"scikit-learn": sklearn.__version__, "numpy": np.__version__}], ids=str
)
def test_libraries_that_fit_or_are_not_told_are_taken(libraries: dict[str, str]) -> None:
    assert open_predictor(bundle(forest(), libraries=libraries), ALLOW_ALL).version == "1"


def test_a_pickle_that_was_made_with_another_scikit_learn_is_refused_though_nothing_says_so() -> None:
    right = dumped(forest())
    marked = right.replace(sklearn.__version__.encode(), b"0" * len(sklearn.__version__))
    assert marked != right
    assert refused(bundle(forest(), files={JOBLIB: marked}, libraries={})) == "libraries"


def test_onnx_does_not_care_which_libraries_trained() -> None:
    assert open_predictor(bundle(forest(), onnx=True, libraries={"scikit-learn": "0.1"}), ALLOW_ALL).kind == "onnx"


class Bomb:
    """A pickle that leaves a mark where it is opened."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def test_a_forbidden_pickle_is_never_opened(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    bomb = dumped(Bomb(mark))
    assert refused(bundle(forest(), files={JOBLIB: bomb}), load_policy(allow_joblib=False)) == "forbidden"
    assert refused(bundle(forest(), files={JOBLIB: bomb}), load_policy(allow_joblib=False, backend="scikit-learn")) == "forbidden"
    assert refused(bundle(forest(), files={JOBLIB: bomb}), load_policy(backend="onnx")) == "forbidden"
    assert open_predictor(bundle(forest(), onnx=True, files={JOBLIB: bomb}), load_policy(allow_joblib=False)).kind == "onnx"
    assert open_predictor(bundle(forest(), onnx=True, files={JOBLIB: bomb}), ALLOW_ALL).kind == "onnx"
    assert not mark.exists()
    assert refused(bundle(forest(), files={JOBLIB: bomb})) in ("load", "signature")
    assert mark.exists()


@pytest.mark.parametrize(
    "raw",
    [b"", b"no pickle", dumped(forest())[:-200], dumped({"a": "dict"}), dumped(sklearn.base.clone(forest()))],
    ids=["empty", "text", "cut", "dict", "never fitted"],
)
def test_a_pickle_that_is_no_fitted_model_is_refused(raw: bytes) -> None:
    assert refused(bundle(forest(), files={JOBLIB: raw})) == "load"


@pytest.mark.parametrize(
    "raw", [b"", b"no model", bundle_files(linear(), diabetes_signature(), onnx=True)[ONNX]], ids=["empty", "text", "another width"]
)
def test_an_onnx_file_that_is_not_this_model_is_refused(raw: bytes) -> None:
    assert refused(bundle(forest(), files={ONNX: raw})) == "load"


ODD_SIGNATURES = {
    "features": iris_signature(features=(*IRIS.features, Feature("one more"))),
    "number of classes": iris_signature(classes=("setosa", "versicolor")),
    "names of classes": iris_signature(classes=("a", "b", "c")),
}


@pytest.mark.parametrize(("what", "onnx"), [(what, onnx) for what in ODD_SIGNATURES for onnx in (False, True)][:-1])
def test_a_model_that_does_not_fit_its_signature_is_refused(what: str, onnx: bool) -> None:
    signature = ODD_SIGNATURES[what]
    files = {name: data for name, data in bundle_files(forest(), onnx=onnx).items() if name != GOLDEN}
    assert refused(Bundle("1", "d", bundle_manifest(signature), {}, files)) in ("signature", "load")


def test_a_model_without_the_promised_probabilities_is_refused() -> None:
    files = {JOBLIB: dumped(without_probabilities())}
    assert refused(Bundle("1", "d", bundle_manifest(), {}, files)) == "signature"


def test_a_signature_whose_example_is_not_an_input_is_refused() -> None:
    odd = iris_signature(features=(Feature("a", example="text"), *IRIS.features[1:]))
    assert refused(Bundle("1", "d", bundle_manifest(odd), {}, {JOBLIB: dumped(forest())})) == "load"
