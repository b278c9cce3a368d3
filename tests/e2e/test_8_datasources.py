"""A table in a bucket is trained and scored in the cluster; without the component, the network policies block the download."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import cluster
from tests.support.cluster import kubectl, make
from tests.support.probe import pod

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]
NAMESPACE = os.environ.get("K8S_NS", "mlops")
ROWS = 200
HOUSES = "rooms,city,price\n" + "".join(
    f"{row % 7 + 1},{'Köln' if row % 2 else 'Ulm'},{row % 7 * 10 + row % 2}\n" for row in range(ROWS)
)
TRAIN = "--data gs://tables/houses/ --target price --n-estimators 5 --no-tracking"
BUCKET = """
apiVersion: v1
kind: Pod
metadata: {name: iris-bucket, labels: {app: iris-bucket, app.kubernetes.io/part-of: iris-api}}
spec:
  automountServiceAccountToken: false
  securityContext:
    runAsNonRoot: true
    runAsUser: 10001
    runAsGroup: 10001
    seccompProfile: {type: RuntimeDefault}
    sysctls: [{name: net.ipv4.ip_unprivileged_port_start, value: "0"}]
  containers:
    - name: gcs
      image: fsouza/fake-gcs-server:1.52.3
      imagePullPolicy: IfNotPresent
      args: [-scheme=http, -port=443, -backend=memory, -data=/data, "-external-url=http://iris-bucket:443"]
      readinessProbe: {httpGet: {path: /_internal/healthcheck, port: 443}, periodSeconds: 1}
      resources: {requests: {cpu: 20m, memory: 32Mi}, limits: {memory: 256Mi}}
      securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
      volumeMounts:
        - {name: tables, mountPath: /data/tables/houses/a.csv, subPath: a.csv}
        - {name: tables, mountPath: /data/tables/houses/b.csv, subPath: b.csv}
  volumes:
    - {name: tables, configMap: {name: iris-bucket}}
---
apiVersion: v1
kind: Service
metadata: {name: iris-bucket, labels: {app.kubernetes.io/part-of: iris-api}}
spec:
  selector: {app: iris-bucket}
  ports: [{name: storage, port: 443}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: iris-bucket, labels: {app.kubernetes.io/part-of: iris-api}}
spec:
  podSelector: {matchLabels: {app: iris-bucket}}
  policyTypes: [Ingress]
  ingress: [{}]
"""


def config_map(name: str, data: dict[str, str]) -> dict[str, Any]:
    metadata = {"name": name, "labels": {"app.kubernetes.io/part-of": "iris-api"}}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


@pytest.fixture(scope="module")
def bucket(secret_file: Path) -> Iterator[None]:
    """The whole system without a model, and a server of Google Cloud Storage on port 443 with the bucket `tables`."""
    assert make("k8s-clean").code == 0
    result = make("k8s-deploy-mlflow", K8S_SECRET=str(secret_file))
    assert result.code == 0, result.output
    documents = [
        config_map("iris-bucket", {"a.csv": HOUSES, "b.csv": HOUSES}),
        # The jobs find the server by the variable of Google's own tools.
        config_map("iris-api-overrides", {"STORAGE_EMULATOR_HOST": "http://iris-bucket:443"}),
        *yaml.safe_load_all(BUCKET),
    ]
    kubectl("-n", NAMESPACE, "apply", "-f", "-", text=yaml.safe_dump_all(documents))
    kubectl("-n", NAMESPACE, "wait", "--for=condition=Ready", "pod/iris-bucket", "--timeout=120s")
    try:
        yield
    finally:
        assert make("k8s-clean").code == 0


def test_without_the_component_the_download_is_blocked_and_the_sentence_names_it(bucket: None) -> None:
    result = make("k8s-train", ARGS=TRAIN)
    assert result.code != 0
    assert "kuberay/components/data-source" in result.output, result.output


def test_a_table_in_a_bucket_is_trained_and_scored(bucket: None) -> None:
    trained = make("k8s-train", TRAIN="data-source", ARGS=TRAIN)
    assert trained.code == 0, trained.output
    program = "import json; print(json.dumps(json.load(open('/app/models/verdict.json'))['data']))"
    (worker, *_) = cluster.pods("app=iris-api,component=worker", NAMESPACE)
    output = kubectl("-n", NAMESPACE, "exec", worker["metadata"]["name"], "-c", "ray-worker", "--", "python", "-c", program)
    data = json.loads(output.splitlines()[-1])
    assert (data["name"], data["rows"]) == ("gs://tables/houses/", 2 * ROWS)
    scored = make(
        "k8s-score",
        SCORE="kuberay/overlays/data-source/score",
        ARGS="--data gs://tables/houses/ --out gs://tables/scores --format csv",
    )
    assert scored.code == 0, scored.output
    assert f"{2 * ROWS:,} rows scored by version 1" in scored.output


def test_the_component_opens_port_443_and_no_other(bucket: None) -> None:
    assert make("k8s-train", TRAIN="data-source", ARGS=f"{TRAIN} --dry-run").code == 0
    address = str(cluster.get("pod", "iris-bucket", NAMESPACE)["status"]["podIP"])
    with (
        pod("trainer", {"iris-api/role": "training"}, NAMESPACE) as trainer,
        pod("stranger", {}, NAMESPACE) as stranger,
        # Everybody may connect to it, like to the bucket, but it listens on 8080.
        pod("listener", {"app": "iris-bucket"}, NAMESPACE) as listener,
    ):
        assert trainer.reaches([(address, 443), (listener.ip, 8080)]) == {(address, 443)}
        assert stranger.reaches([(address, 443)]) == set()
