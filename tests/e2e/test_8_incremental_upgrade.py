"""An upgrade that moves the requests step by step, through the Gateway that the operator makes, in a namespace of its own.

It needs a GatewayClass `traefik` whose port 80 is a port of this machine (GATEWAY_PORT), and an operator with the feature gate
RayServiceIncrementalUpgrade, which KubeRay 1.7 has on by default.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kuberay.ctl.kube import field
from tests.support import cluster
from tests.support.cluster import ROOT, kubectl, roll_out_operations
from tests.support.environment import RATE, Environment, deployed, images, write
from tests.support.figures import note
from tests.support.waiting import until

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

NAMESPACE = "iris-incremental"
PORT = int(os.environ.get("GATEWAY_PORT", "80"))


def upgrade_overlay(folder: Path, mark: str) -> Environment:
    """kuberay/overlays/incremental-upgrade; another `mark` is another pod template."""
    environment = Environment(folder, NAMESPACE, PORT)
    overlay = os.path.relpath(ROOT / "kuberay" / "overlays" / "incremental-upgrade", folder)
    environment.write({"resources": [overlay]}, roll_out_operations(mark))
    return environment


def operator_can() -> bool:
    """Whether the operator has the feature gate on, or is new enough to have it by default."""
    deployments = json.loads(kubectl("get", "deployments", "-A", "-o", "json"))["items"]
    containers = [one for deployment in deployments for one in deployment["spec"]["template"]["spec"]["containers"]]
    for container in containers:
        if "kuberay/operator" in container["image"]:
            version = container["image"].rpartition(":v")[2]
            is_new = tuple(int(part) for part in version.split(".")[:2]) >= (1, 7) if version[:1].isdigit() else False
            return is_new or any("RayServiceIncrementalUpgrade=true" in argument for argument in container.get("args", []))
    return False


@pytest.fixture(scope="module")
def key() -> str:
    return secrets.token_hex(32)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory, key: str) -> Iterator[Environment]:
    classes = kubectl("get", "gatewayclass", "-o", "name", "--ignore-not-found", check=False)
    if "traefik" not in classes or not operator_can():
        pytest.skip("NOT TESTED: no GatewayClass traefik, or an operator without RayServiceIncrementalUpgrade")
    environment = upgrade_overlay(tmp_path_factory.mktemp("overlay"), "one")
    with deployed(environment, key, tmp_path_factory.mktemp("train")):
        yield environment


def test_requests_move_to_the_new_ray_cluster_step_by_step_and_none_fails_after_one_retry(
    environment: Environment, key: str
) -> None:
    old = environment.ray_cluster()
    steps: list[tuple[int, int]] = []

    def switched() -> bool:
        status = environment.service()["status"]
        step = tuple(int(field(status, f"{side}ServiceStatus.trafficRoutedPercent", 0)) for side in ("active", "pending"))
        if not steps or steps[-1] != step:
            steps.append((step[0], step[1]))
        return bool(field(status, "activeServiceStatus.rayClusterName") != old)

    with environment.load(key, retry=True) as record:
        upgrade_overlay(environment.folder, "two").apply()
        until(switched, seconds=900, every=0.5, what="the new Ray cluster as the active one")
        seconds = time.monotonic() - record.started
        environment.wait_until_settled()
        before = record.finished
        until(lambda: record.finished >= before + 30 * RATE, seconds=120, what="requests after the upgrade")
    note(f"{record} {dict(record.statuses)} in {seconds:.0f} s; shares of old and new cluster: {steps}")
    last = {attempt.id: attempt.status for attempt in record.history}
    assert {name: status for name, status in last.items() if status != 200} == {}, record.failures
    assert {new for _, new in steps} >= {25, 50, 75}


def test_pages_that_describe_the_application_need_a_key_because_the_route_has_all_paths(environment: Environment) -> None:
    assert {cluster.request(path, port=PORT).status for path in ("/metrics", "/docs", "/openapi.json")} == {401}


def test_a_schedule_of_the_operator_trains(environment: Environment, tmp_path: Path) -> None:
    """kuberay/overlays/raycronjob, every minute."""
    arguments = kubectl("get", "deployments", "-A", "-o", "jsonpath={.items[*].spec.template.spec.containers[*].args}")
    if "RayCronJob=true" not in arguments:
        pytest.skip("NOT TESTED: the operator's feature gate RayCronJob is off")
    overlay = os.path.relpath(ROOT / "kuberay" / "overlays" / "raycronjob", tmp_path)
    every_minute = json.dumps([{"op": "replace", "path": "/spec/schedule", "value": "* * * * *"}])
    patches = [{"target": {"kind": "RayCronJob"}, "patch": every_minute}]
    write(tmp_path, {"resources": [overlay], "namespace": NAMESPACE, "images": images(), "patches": patches})

    def rayjobs() -> dict[str, str]:
        jobs = json.loads(kubectl("-n", NAMESPACE, "get", "rayjobs", "-o", "json"))["items"]
        return {job["metadata"]["name"]: field(job, "status.jobStatus", "") for job in jobs}

    by_hand = set(rayjobs())
    kubectl("apply", "-k", str(tmp_path))

    def succeeded() -> list[str]:
        return [name for name, status in rayjobs().items() if name not in by_hand and status == "SUCCEEDED"]

    until(succeeded, seconds=400, every=1, what="a RayJob of the schedule that succeeds")
