"""The program of the schedule's pod against an API server that speaks HTTP."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from kuberay.components.schedule import scheduled_run
from kuberay.components.schedule.scheduled_run import DONE, FAILED, ApiServer, run
from tests.support.kube_api import JsonHandler, running

TEMPLATE = {
    "apiVersion": "ray.io/v1",
    "kind": "RayJob",
    "metadata": {"name": "iris-train-template", "namespace": "mlops", "uid": "1", "labels": {"a": "b"}, "resourceVersion": "7"},
    "spec": {"suspend": True, "entrypoint": "python -m training", "backoffLimit": 0},
    "status": {"jobDeploymentStatus": "Suspended"},
}


class RayJobs(ThreadingHTTPServer):
    """The RayJobs of a namespace; a created one gets the statuses in turn."""

    def __init__(self, statuses: list[dict[str, str] | int]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.jobs: dict[str, Any] = {"iris-train-template": TEMPLATE}
        self.statuses = statuses


class Handler(JsonHandler):
    server: RayJobs

    def do_GET(self) -> None:
        name = self.path.rpartition("/")[2]
        job = self.server.jobs.get(name)
        if job is not None and name != "iris-train-template":
            status = self.server.statuses.pop(0) if len(self.server.statuses) > 1 else self.server.statuses[0]
            if isinstance(status, int):
                return self.answer(status, {})
            job = {**job, "status": status}
        return self.answer(200 if job else 404, job or {})

    def do_POST(self) -> None:
        job = self.body()
        taken = job["metadata"]["name"] in self.server.jobs
        self.server.jobs.setdefault(job["metadata"]["name"], job)
        self.answer(409 if taken else 201, job)


@contextlib.contextmanager
def api_server(tmp_path: Path, *statuses: dict[str, str] | int) -> Iterator[tuple[ApiServer, RayJobs]]:
    server = RayJobs(list(statuses))
    with running(server, tmp_path) as address:
        yield ApiServer(address, tmp_path), server


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduled_run, "POLL_SECONDS", 0.01)


def test_a_run_is_a_copy_of_the_template_that_the_job_owns(tmp_path: Path) -> None:
    with api_server(tmp_path, {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}) as (server, rayjobs):
        assert run(server, "iris-train-template", "nightly-1", "42") == DONE
        job = rayjobs.jobs["nightly-1-ray"]
    assert job["spec"] == {"entrypoint": "python -m training", "backoffLimit": 0}
    assert job["metadata"]["labels"] == {"a": "b"}
    assert job["metadata"]["ownerReferences"] == [{"apiVersion": "batch/v1", "kind": "Job", "name": "nightly-1", "uid": "42"}]
    assert "resourceVersion" not in job["metadata"]


def test_a_failed_training_ends_the_run_with_its_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    failed = {"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "reason": "AppFailed", "message": "x\nerror: no column"}
    with api_server(tmp_path, {"jobDeploymentStatus": "Running"}, failed) as (server, _):
        assert run(server, "iris-train-template", "nightly-1", "42") == FAILED
    assert "error: no column" in capsys.readouterr().out


def test_a_second_pod_of_the_job_waits_for_the_same_rayjob(tmp_path: Path) -> None:
    with api_server(tmp_path, {"jobDeploymentStatus": "Complete"}) as (server, rayjobs):
        rayjobs.jobs["nightly-1-ray"] = {"metadata": {"name": "nightly-1-ray"}, "spec": {"first": True}}
        assert run(server, "iris-train-template", "nightly-1", "42") == DONE
        assert rayjobs.jobs["nightly-1-ray"]["spec"] == {"first": True}


def test_an_api_server_that_is_away_for_a_moment_does_not_end_the_run(tmp_path: Path) -> None:
    with api_server(tmp_path, 503, 500, {"jobDeploymentStatus": "Complete"}) as (server, _):
        assert run(server, "iris-train-template", "nightly-1", "42") == DONE


def test_a_rayjob_that_was_deleted_ends_the_run(tmp_path: Path) -> None:
    with api_server(tmp_path, 404) as (server, _), pytest.raises(OSError, match="404"):
        run(server, "iris-train-template", "nightly-1", "42")
