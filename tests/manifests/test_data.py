"""What DATA of `make k8s-train` and `make k8s-score` means, without a cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from kuberay.ctl import data, schedule
from kuberay.ctl.kube import Cluster, CommandError, Json

CLUSTER = Cluster(("kubectl-that-is-nowhere",), "mlops")


@pytest.mark.parametrize("source", ["gs://tables/houses/", "s3://a/b.csv", "https://host/t.csv", "/data/in/houses.csv"])
def test_what_is_not_of_this_machine_is_given_to_the_training_as_it_is(source: str) -> None:
    assert data.carry(CLUSTER, source) == source


def test_a_file_that_does_not_exist_is_named_before_the_cluster_is_asked(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=r"houses\.csv does not exist"):
        data.carry(CLUSTER, str(tmp_path / "houses.csv"))


def test_all_files_that_do_not_exist_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(CommandError) as error:
        data.carry_all(CLUSTER, [str(tmp_path / "model.joblib"), "/data/in/t.csv", str(tmp_path / "rows.csv")])
    assert {"model.joblib", "rows.csv"} <= {Path(word.strip(",")).name for word in str(error.value).split()}


def test_two_files_that_would_replace_each_other_in_the_claim_are_refused(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "t.csv").write_text("x")
    with pytest.raises(CommandError, match="rename one"):
        data.carry_all(CLUSTER, [str(tmp_path / "a" / "t.csv"), str(tmp_path / "b" / "t.csv")])


def test_a_folder_is_carried_without_its_hidden_and_compiled_files(tmp_path: Path) -> None:
    for name in ("a.csv", "2026/b.parquet", ".git/config", ".DS_Store", "__pycache__/a.pyc"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    assert list(data.folder_files(tmp_path, "/data/in/t")) == ["/data/in/t/2026/b.parquet", "/data/in/t/a.csv"]


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="no file"):
        data.folder_files(tmp_path, "/data/in/t")


@pytest.mark.parametrize(("name", "path"), [("in/t.csv", "in/t.csv"), ("/data/out/t", "out/t"), ("out/t/", "out/t")])
def test_a_path_of_the_claim_is_written_with_or_without_its_folder(name: str, path: str) -> None:
    assert data.claim_path(name) == path


@pytest.mark.parametrize("name", ["in", "/data/in", "/etc/passwd", "in/../../etc/passwd", "t.csv", ""])
def test_nothing_outside_of_the_tables_is_fetched_or_removed(name: str) -> None:
    with pytest.raises(CommandError, match="not a path in the claim"):
        data.claim_path(name)


@pytest.mark.parametrize(
    ("source", "name"),
    [("flats.csv", "flats"), ("/x/my flats.2026.csv.gz", "my-flats"), ("s3://bucket/in/", "in"), ("gs://b/*.csv", "table")],
)
def test_results_have_the_name_of_their_table(source: str, name: str) -> None:
    assert data.result_name(source) == name


def job(name: str, condition: str = "") -> Json:
    conditions = [{"type": condition, "status": "True", "reason": "BackoffLimitExceeded", "message": "too often"}]
    return {"metadata": {"name": name}, "status": {"conditions": conditions if condition else []}}


def test_the_reason_of_a_failed_run_is_the_sentence_of_the_training_or_of_the_job() -> None:
    rayjob = {"status": {"message": "read the data\nerror: there is no column 'y'\n"}}
    assert schedule.reason(job("a", "Failed"), rayjob) == "there is no column 'y'"
    assert schedule.reason(job("a", "Failed"), None) == "BackoffLimitExceeded: too often"
    assert [schedule.outcome(job("a", name)) for name in ("Complete", "Failed", "")] == ["succeeded", "failed", "running"]
