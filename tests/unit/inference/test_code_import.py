"""The user's code of a bundle: importable for its own version, and for nothing else."""

from __future__ import annotations

import importlib
import io
import pickle
import sys
import threading
import traceback
import types
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from serve_app.artifacts.names import JOBLIB
from serve_app.artifacts.signature import Feature, Signature
from serve_app.artifacts.store import Store
from serve_app.errors import BundleRefused
from serve_app.inference.code_import import packages_imported
from tests.support.apps import HEADERS, client_of
from tests.support.frame_models import frame_manifest
from tests.support.models import dumped, publish_iris
from tests.support.policies import load_policy

NAME = "steps_of_a_test"


@pytest.fixture(autouse=True)
def _no_module_of_the_name_stays() -> Iterator[None]:
    yield
    sys.modules.pop(NAME, None)


def package(name: str = NAME, /, **modules: str) -> dict[str, bytes]:
    """A package of the bundle; keys are paths without `.py`."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path, source in modules.items():
            archive.writestr(f"{path}.py", source)
    return {f"package-{name}.zip": buffer.getvalue()}


def own(files: dict[str, bytes], name: str = NAME) -> Any:
    with packages_imported(files):
        return importlib.import_module(name)


def test_a_module_is_there_while_the_model_is_loaded_and_gone_afterwards() -> None:
    before = dict(sys.modules)
    module = own(package(**{NAME: "import math\nvalue = math.pi"}))
    assert module.value == pytest.approx(3.14159, abs=1e-5)
    assert NAME not in sys.modules
    assert before.items() <= dict(sys.modules).items()
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(NAME)


def test_two_versions_keep_modules_of_one_name_also_for_imports_that_come_late() -> None:
    source = "def f():\n    from {name}.inner import value\n    import {name}.inner as again\n    return value, again.value"
    made = [
        own(package(**{f"{NAME}/__init__": source.format(name=NAME), f"{NAME}/inner": f"value = {number}"})) for number in (1, 2)
    ]
    assert [module.f() for module in made] == [(1, 1), (2, 2)]
    assert made[0].f() == (1, 1)


def test_relative_circular_and_star_imports_work_inside_a_package() -> None:
    files = package(
        **{
            f"{NAME}/__init__": "from .a import *\nfrom . import sub\nfrom .sub.deep import depth\nimport steps_of_a_test.b",
            f"{NAME}/a": "__all__ = ['one', 'b']\nfrom . import b\none = 1",
            f"{NAME}/b": "from . import a\ndef late():\n    return a.one",
            f"{NAME}/sub/deep": "from ..a import one\ndepth = one + 1",
        }
    )
    module = own(files)
    assert (module.one, module.depth, module.b.late()) == (1, 2, 1)
    assert module.sub.deep.depth == 2


def test_a_dataclass_whose_annotations_are_texts_works_also_when_its_module_is_imported_late() -> None:
    record = (
        "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass Record:\n    number: int = 7\n"
    )
    late = "def f():\n    from steps_of_a_test.record import Record\n    return Record().number"
    module = own(package(**{f"{NAME}/__init__": late, f"{NAME}/record": record}))
    assert module.f() == 7
    assert not any(name.startswith(NAME) for name in sys.modules)


def test_an_import_that_fails_says_why_and_leaves_nothing_behind() -> None:
    for source, error in (
        ("1 / 0", ZeroDivisionError),
        (f"from {NAME} import nothing", ImportError),
        ("import nowhere_at_all", ImportError),
    ):
        with pytest.raises(error):
            own(package(**{NAME: source}))
        assert NAME not in sys.modules
        assert not any(type(finder).__module__ == "serve_app.inference.code_import" for finder in sys.meta_path)


def test_a_traceback_shows_the_lines_of_the_module() -> None:
    module = own(package(**{NAME: "def f():\n    raise ValueError  # here\n"}))
    try:
        module.f()
    except ValueError:
        text = traceback.format_exc()
    assert "# here" in text
    assert f"<bundle>/{NAME}.py" in text


def test_files_of_a_package_are_read_with_importlib_resources() -> None:
    source = (
        "import importlib.resources, sys\ntext = importlib.resources.files(sys.modules[__name__]).joinpath('words.py').read_text()"
    )
    assert own(package(**{f"{NAME}/__init__": source, f"{NAME}/words": "a = 1"})).text == "a = 1"


@pytest.mark.parametrize("name", ["json", "numpy", "sklearn", "serve_app", "training", "__main__"])
def test_an_installed_module_is_never_hidden(name: str) -> None:
    before = sys.modules.get(name)
    with pytest.raises(BundleRefused) as refused, packages_imported(package(**{name: "raise AssertionError"})):
        raise AssertionError
    assert refused.value.reason == "load"
    assert sys.modules.get(name) is before


def test_an_installed_module_is_used_when_it_is_the_same_and_nothing_else_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "site-packages" / NAME
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("value = 1")
    monkeypatch.syspath_prepend(folder.parent)
    installed = importlib.import_module(NAME)
    assert own(package(**{f"{NAME}/__init__": "value = 1"})) is installed
    for other in ({f"{NAME}/__init__": "value = 2"}, {f"{NAME}/__init__": "value = 1", f"{NAME}/more": ""}, {NAME: "value = 1"}):
        with pytest.raises(BundleRefused):
            own(package(**other))
    assert sys.modules[NAME] is installed


def test_a_module_of_a_working_folder_is_used_outside_and_that_of_the_bundle_inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"{NAME}.py").write_text("value = 'outside'")
    monkeypatch.syspath_prepend(tmp_path)
    outside = importlib.import_module(NAME)
    assert own(package(**{NAME: "value = 'inside'"})).value == "inside"
    assert importlib.import_module(NAME) is outside


def test_loads_in_two_threads_do_not_see_each_other() -> None:
    seen: list[Any] = []

    def load(number: int) -> None:
        seen.extend(own(package(**{NAME: f"value = {number}"})).value == number for _ in range(20))

    threads = [threading.Thread(target=load, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [True] * 80


ADDER = "import numpy as np\ndef step(X):\n    from steps_of_a_test import NUMBER\n    return X + NUMBER\nNUMBER = {number}\n"
SIGNATURE = Signature((Feature("x"),), "regression")


def adder(number: int) -> dict[str, bytes]:
    """The files of a bundle whose model adds a number in a step of the user's own code: x + number."""
    module = types.ModuleType(NAME)
    exec(ADDER.format(number=number), module.__dict__)
    sys.modules[NAME] = module
    try:
        plain = LinearRegression().fit([[0.0], [1.0]], [0.0, 1.0])
        pickled = dumped(make_pipeline(FunctionTransformer(module.step), plain))
    finally:
        del sys.modules[NAME]
    return {JOBLIB: pickled, "metrics.json": b"{}", **package(**{NAME: ADDER.format(number=number)})}


def test_a_served_model_brings_its_code_and_the_next_version_brings_other_code_of_the_same_name(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(ModuleNotFoundError):
        pickle.loads(adder(10)[JOBLIB])
    store.publish(adder(10), frame_manifest(SIGNATURE, None))
    with client_of(store) as client:
        slot = client.app_state["slot"]
        old = slot.predictor
        assert client.post("/predict", json={"x": 1}, headers=HEADERS).json()["prediction"] == pytest.approx(11)
        store.publish(adder(20), frame_manifest(SIGNATURE, None))
        slot.refresh()
        assert client.post("/predict", json={"x": 1}, headers=HEADERS).json()["prediction"] == pytest.approx(21)
        assert old.scores(np.ones((1, 1))) == pytest.approx(11)
        assert not any(name.startswith("package-") for name in slot.predictor.bundle.files)


def test_a_model_that_asks_the_import_system_for_its_code_later_is_refused_at_once(tmp_path: Path) -> None:
    source = ADDER.format(number=1).replace(
        "from steps_of_a_test import NUMBER", "import importlib; importlib.import_module(__name__)"
    )
    store = Store(tmp_path)
    store.publish({**adder(1), **package(**{NAME: source})}, frame_manifest(SIGNATURE, None))
    with client_of(store) as client:
        assert client.app_state["slot"].refusal.reason == "load"


def test_code_of_a_bundle_never_runs_where_no_pickle_may_be_opened(tmp_path: Path) -> None:
    store = Store(tmp_path)
    publish_iris(store, onnx=True)
    canary = tmp_path / "canary"
    files = {**adder(1), **package(**{NAME: f"open({str(canary)!r}, 'w')"})}
    with client_of(store, policy=load_policy(allow_joblib=False)) as client:
        store.publish(files, frame_manifest(SIGNATURE, None))
        slot = client.app_state["slot"]
        slot.refresh()
        assert slot.refusal.reason == "forbidden"
        assert slot.predictor.version == "1"
    assert not canary.exists()


def test_a_model_whose_code_is_missing_is_refused_by_its_name(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.publish(
        {name: data for name, data in adder(1).items() if not name.startswith("package-")}, frame_manifest(SIGNATURE, None)
    )
    with client_of(store) as client:
        refusal = client.app_state["slot"].refusal
    assert refusal.reason == "libraries"
    assert NAME in refusal.message
