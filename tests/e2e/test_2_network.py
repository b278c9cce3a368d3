"""Closed doors: which pod may open a connection to which port, what a service account may do, and what a pod may write."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.support import cluster
from tests.support.cluster import kubectl, request
from tests.support.figures import note
from tests.support.probe import Pair, Pod, other_namespace, pod
from tests.support.waiting import until

HEAD_PORTS = {
    "api": 8000,
    "grpc": 9000,
    "dashboard": 8265,
    "gcs": 6379,
    "client": 10001,
    "metrics": 8080,
    "autoscaler": 44217,
    "dashboard metrics": 44227,
}
HAPROXY_PORTS = {"haproxy stats": 8404, "haproxy metrics": 9101}
REPLICA_PORTS = range(30000, 30010)
REPLICA_GRPC_PORTS = range(40000, 40010)
OPERATOR = {"app.kubernetes.io/component": "kuberay-operator"}


@dataclass(frozen=True, slots=True)
class Doors:
    """The ports that are open inside, and the pods that knock."""

    targets: dict[str, Pair]
    replica: Pod
    head: Pod
    mlflow: Pod
    sources: dict[str, Pod]

    def names(self, pairs: set[Pair]) -> set[str]:
        return {name for name, pair in self.targets.items() if pair in pairs}

    def reached_from(self, source: Pod) -> set[str]:
        return self.names(source.reaches(set(self.targets.values())))


@pytest.fixture(scope="module")
def doors(trained: str) -> Iterator[Doors]:
    # After an upgrade the cluster before stays for a minute.
    until(
        lambda: len(cluster.pods("app=iris-api")) == 3 and cluster.ready("app=iris-api") == 3,
        seconds=240,
        every=1,
        what="one Ray cluster",
    )
    replica = Pod(cluster.pods("app=iris-api,component=worker")[0]["metadata"]["name"], "ray-worker")
    head = Pod(cluster.pods("app=iris-api,component=head")[0]["metadata"]["name"], "ray-head")
    mlflow = Pod(cluster.pods("app=mlflow-server")[0]["metadata"]["name"], "mlflow")
    targets = {f"head {name}": (head.ip, port) for name, port in (HEAD_PORTS | HAPROXY_PORTS).items()}
    targets |= {
        f"worker {name}": (replica.ip, port)
        for name, port in ({"api": 8000, "grpc": 9000, "metrics": 8080} | HAPROXY_PORTS).items()
    }
    targets |= {f"replica {port}": (replica.ip, port) for port in (*REPLICA_PORTS, *REPLICA_GRPC_PORTS)}
    targets["mlflow"] = (mlflow.ip, 5000)
    targets["api server"] = ("kubernetes.default.svc", 443)
    with (
        other_namespace() as other,
        pod("stranger", {}, other) as stranger,
        pod("operator", OPERATOR, other) as operator,
        pod("unlabelled", {}) as unlabelled,
        pod("trainer", {"iris-api/role": "training"}) as trainer,
        pod("store", {"iris-api/role": "store"}) as store,
    ):
        targets["elsewhere"] = (stranger.ip, 8080)
        targets["unlabelled"] = (unlabelled.ip, 8080)
        targets["trainer"] = (trainer.ip, 8080)
        sources = {
            "another namespace": stranger,
            "the operator": operator,
            "no label": unlabelled,
            "training": trainer,
            "the store's job": store,
            "MLflow": mlflow,
            "a worker": replica,
            "the head": head,
        }
        yield Doors(targets, replica, head, mlflow, sources)


def listening(doors: Doors) -> set[str]:
    """What listens, as the pods themselves see it on their own address."""
    pairs = doors.head.reaches({pair for pair in doors.targets.values() if pair[0] == doors.head.ip})
    pairs |= doors.replica.reaches({pair for pair in doors.targets.values() if pair[0] == doors.replica.ip})
    return doors.names(pairs)


def test_each_pod_reaches_what_it_needs_and_nothing_else(doors: Doors) -> None:
    inside = listening(doors)
    api = {"head api", "worker api", "head grpc", "worker grpc"}
    replicas = [inside & {f"replica {port}" for port in ports} for ports in (REPLICA_PORTS, REPLICA_GRPC_PORTS)]
    assert {f"head {name}" for name in HEAD_PORTS} <= inside
    assert {"head haproxy stats", "worker haproxy stats", "worker haproxy metrics", "worker metrics"} <= inside
    assert all(replicas), "no replica listens where it is looked for"
    allowed = {
        "another namespace": api | {"elsewhere", "api server"},
        "the operator": api | {"head dashboard", "elsewhere", "api server"},
        "no label": {"unlabelled"},
        "training": {"mlflow", "trainer"},
        "the store's job": {"mlflow"},
        "MLflow": {"mlflow"},
        "a worker": inside | {"mlflow"},
        "the head": inside | {"mlflow", "api server"},
    }
    pairs = 0
    for name, source in doors.sources.items():
        reached: set[str] = set()

        def as_allowed(source: Pod = source, name: str = name, reached: set[str] = reached) -> bool:
            reached.clear()
            reached.update(doors.reached_from(source))
            return reached == allowed[name]

        try:
            until(as_allowed, seconds=30, every=1, what="the allowed connections and no other")
        except AssertionError:
            pytest.fail(f"from {name}: too many {reached - allowed[name]}, too few {allowed[name] - reached}")
        pairs += len(allowed[name]) + len((inside | {"mlflow", "api server", "elsewhere", "unlabelled", "trainer"}) - allowed[name])
    note(f"{pairs} pairs of pod and open port tried, none wrong")


def test_names_are_resolved_everywhere(doors: Doors) -> None:
    program = "import socket; print(socket.gethostbyname('mlflow-server-service.mlops.svc.cluster.local'))"
    addresses = {source.run(program).strip() for source in doors.sources.values()}
    assert len(addresses) == 1


def test_nobody_submits_a_job_or_changes_the_application_without_the_token(doors: Doors) -> None:
    dashboard = f"http://{doors.head.ip}:8265"
    attempts = (
        ("POST", "/api/jobs/", '{"entrypoint": "id"}'),
        ("DELETE", "/api/jobs/raysubmit_1", ""),
        ("GET", "/api/jobs/", ""),
        ("PUT", "/api/serve/applications/", '{"applications": []}'),
        ("DELETE", "/api/serve/applications/", ""),
    )
    with_network = {"the operator", "a worker", "the head"}
    for name, source in doors.sources.items():
        statuses = {source.status(method, dashboard + path, body) for method, path, body in attempts}
        assert statuses == ({"401"} if name in with_network else {"no answer"}), name
    note(f"{len(attempts)} requests from each of {len(doors.sources)} pods: 401, or no connection")


def test_the_node_port_answers_behind_the_policies(trained: str) -> None:
    assert request("/health").status == 200


# --- what an account may do


AUTOSCALER = {"pods": {"get", "list", "watch", "patch"}, "pods/resize": {"patch"}, "rayclusters.ray.io": {"get", "patch"}}
EVERYBODY = ("selfsubject", "[")
"""Rows of `can-i --list` that everybody has: questions about oneself, and paths that are no resources."""


def rights(account: str) -> dict[str, set[str]]:
    output = kubectl("-n", "mlops", "auth", "can-i", "--list", f"--as=system:serviceaccount:mlops:{account}", "--no-headers")
    verbs_of: dict[str, set[str]] = {}
    for line in output.splitlines():
        name, verbs = line.split()[0], line[line.rindex("[") + 1 : line.rindex("]")].split()
        if not name.startswith(EVERYBODY):
            verbs_of.setdefault(name, set()).update(verbs)
    return verbs_of


def test_no_account_may_do_more_than_it_needs(trained: str) -> None:
    accounts = json.loads(kubectl("-n", "mlops", "get", "serviceaccounts", "-o", "json"))["items"]
    names = {item["metadata"]["name"] for item in accounts}
    heads = {name for name in names if name.startswith("iris-api-")}
    assert names == heads | {"default"}
    assert heads
    assert rights("default") == {}
    for name in heads:
        for resource, verbs in rights(name).items():
            assert verbs <= AUTOSCALER.get(resource, set()), f"{name}: {resource} {verbs}"
    note(f"{len(names)} accounts: the default one may nothing, the head's {rights(next(iter(heads)))}")


def test_the_token_is_in_the_autoscaler_and_nowhere_else(trained: str) -> None:
    holders = set()
    for item in json.loads(kubectl("-n", "mlops", "get", "pods", "-o", "json"))["items"]:
        for container in item["spec"]["containers"] + item["spec"].get("initContainers", []):
            mounts = {mount["mountPath"] for mount in container.get("volumeMounts", [])}
            if "/var/run/secrets/kubernetes.io/serviceaccount" in mounts:
                holders.add((item["metadata"]["labels"]["app"], container["name"]))
    assert holders == {("iris-api", "autoscaler")}


def test_no_pod_can_write_to_its_root_and_no_replica_to_the_store(doors: Doors) -> None:
    for item in json.loads(kubectl("-n", "mlops", "get", "pods", "-o", "json"))["items"]:
        for container in item["spec"]["containers"] + item["spec"].get("initContainers", []):
            assert container["securityContext"]["readOnlyRootFilesystem"] is True, (item["metadata"]["name"], container["name"])
    program = (
        "import errno, pathlib\n"
        "for path in ('/app/models/x', '/app/x', '/opt/venv/x'):\n"
        "    try: pathlib.Path(path).write_text('')\n"
        "    except OSError as error: print(errno.errorcode[error.errno])\n"
    )
    for source in (doors.head, doors.replica):
        assert source.run(program).split() == ["EROFS"] * 3
