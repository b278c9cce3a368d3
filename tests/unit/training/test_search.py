from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.artifacts.signature import Task
from serve_app.errors import UsageError
from tests.support.estimators import INSTALLED
from training import fit, search
from training.estimators import ESTIMATORS


@given(
    st.sampled_from(sorted(ESTIMATORS)), st.sampled_from(["classification", "regression"]), st.integers(1, 40), st.integers(0, 9)
)
def test_candidates_differ_and_follow_from_the_seed(estimator: str, task: Task, count: int, seed: int) -> None:
    first, again = (search.propose(task, estimator, {}, candidates=count, random_state=seed) for _ in range(2))
    assert first == again
    assert 1 <= len(first) <= count
    assert first[0] == {}
    assert len({repr(params) for params in first}) == len(first)


def test_given_parameters_stay_in_every_candidate() -> None:
    proposals = search.propose("classification", "random-forest", {"max_depth": None}, candidates=8, random_state=1)
    assert len(proposals) == 8
    assert all(params["max_depth"] is None for params in proposals)


def test_more_candidates_of_one_seed_begin_with_the_same() -> None:
    few, many = (search.propose("classification", "random-forest", {}, candidates=count, random_state=1) for count in (5, 20))
    assert many[:5] == few


@pytest.mark.parametrize("estimator", INSTALLED)
@pytest.mark.parametrize("task", ["classification", "regression"])
def test_every_parameter_is_known_to_its_estimator(estimator: str, task: Any) -> None:
    from serve_app.artifacts.signature import Feature, Signature

    signature = Signature((Feature("x"),), task, ("a", "b") if task == "classification" else ())
    for params in search.propose(task, estimator, {}, candidates=10, random_state=3):
        fit.build(signature, estimator, params, random_state=1)


def test_the_common_name_of_a_parameter_fixes_the_estimator_s_own() -> None:
    proposals = search.propose("classification", "hist-gradient-boosting", {"n_estimators": 7}, candidates=5, random_state=1)
    assert {params["max_iter"] for params in proposals} == {7}
    assert not any("n_estimators" in params for params in proposals)


def test_an_estimator_of_one_s_own_has_no_space_to_search() -> None:
    with pytest.raises(UsageError, match=r"my\.module:make"):
        search.propose("classification", "my.module:make", {}, candidates=3, random_state=1)
