"""Commands of the monitoring stack, behind `make k8s-monitoring-*`: `python3 -m monitoring.stack COMMAND`.

The environment variables K8S_NS, KUBECONFIG and KUBECTL choose the namespace, the cluster and the kubectl program.
"""

from __future__ import annotations

import argparse
import base64
import json
import secrets
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

from kuberay.ctl.api_client import port_forward
from kuberay.ctl.kube import Cluster, CommandError, Json, container_statuses, echo, field
from kuberay.ctl.manifests import build, dump, of_kind

HERE = Path(__file__).resolve().parent
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Opens addresses of this machine directly, because the proxy of `http_proxy` cannot reach them."""
PART_OF = "app.kubernetes.io/part-of=iris-api-monitoring"
ADMIN = "grafana-admin"
NAMESPACE = "mlops"
"""The namespace that the manifests name."""
FORWARDS = {"grafana": 3000, "prometheus": 9090, "alertmanager": 9093}


def deploy(cluster: Cluster, folder: str, seconds: int) -> None:
    """Apply the stack and wait for its Deployments."""
    documents = in_namespace(build(cluster, _folder(folder)), cluster.namespace)
    if cluster.get("namespace", cluster.namespace, namespaced=False) is None:
        raise CommandError(f"the namespace {cluster.namespace} does not exist: run `make k8s-deploy` first")
    if any(document["metadata"]["name"] == "grafana" for document in of_kind(documents, "Deployment")):
        _password(cluster)
    cluster.run("apply", "--server-side", "--force-conflicts", "-f", "-", text=dump(documents))
    for name in sorted(str(item["metadata"]["name"]) for item in cluster.items("deployments", PART_OF)):
        echo(f"waiting for {name} …")
        try:
            cluster.run("rollout", "status", f"deployment/{name}", f"--timeout={seconds}s")
        except CommandError as stop:
            raise CommandError(f"{name} is not ready ({stop}): `make k8s-monitoring-status` shows why") from None
    echo("monitoring runs: open it with `make k8s-monitoring-port-forward`")


def delete(cluster: Cluster, folder: str) -> None:
    """Remove the stack; the volume of monitoring/components/storage and Grafana's password stay."""
    documents = in_namespace(build(cluster, _folder(folder)), cluster.namespace)
    documents = [document for document in documents if document["kind"] != "PersistentVolumeClaim"]
    cluster.run("delete", "--ignore-not-found", "--wait=true", "-f", "-", text=dump(documents))
    echo("monitoring is removed; serving has not changed")


def in_namespace(documents: list[Json], namespace: str) -> list[Json]:
    """Write the namespace where kustomize does not: names of cluster-wide objects and the metrics that Prometheus keeps."""
    if namespace == NAMESPACE:
        return documents
    for document in documents:
        if document["kind"] in ("ClusterRole", "ClusterRoleBinding"):
            _prefix(document["metadata"], namespace)
            _prefix(document.get("roleRef", {}), namespace)
        for key, text in (document.get("data") or {}).items() if document["kind"] == "ConfigMap" else ():
            document["data"][key] = text.replace(f';{NAMESPACE}"', f';{namespace}"')
    return documents


def _prefix(reference: Json, namespace: str) -> None:
    if str(reference.get("name", "")).startswith(f"{NAMESPACE}-"):
        reference["name"] = namespace + str(reference["name"]).removeprefix(NAMESPACE)


def status(cluster: Cluster) -> None:
    """Print what runs, which targets do not answer, and which alerts fire."""
    pods = cluster.pods(PART_OF)
    if not pods:
        raise CommandError("monitoring is not deployed: run `make k8s-monitoring-deploy`")
    for pod in pods:
        ready = all(status.get("ready") for status in field(pod, "status.containerStatuses", []))
        waiting = [str(field(status, "state.waiting.reason", "")) for status in container_statuses(pod)]
        echo(f"{pod['metadata']['name']:44} {'ready' if ready else ' '.join(filter(None, waiting)) or field(pod, 'status.phase')}")
    with port_forward(cluster, "prometheus", 9090) as address:
        targets = ask(address, "api/v1/targets?state=active")["data"]["activeTargets"]
    down = [target for target in targets if target["health"] != "up"]
    echo(f"targets: {len(targets) - len(down)} of {len(targets)} answer")
    for target in down:
        echo(f"  {target['labels']['job']} {target['scrapeUrl']}: {target['lastError']}")
    with port_forward(cluster, "alertmanager", 9093) as address:
        alerts = [alert for alert in ask(address, "api/v2/alerts") if alert["labels"]["alertname"] != "IrisApiWatchdog"]
    echo(f"alerts: {len(alerts) or 'none'}")
    for alert in alerts:
        echo(f"  {alert['labels'].get('severity', ''):9} {alert['annotations'].get('summary', alert['labels']['alertname'])}")


def logs(cluster: Cluster, name: str) -> None:
    """Replace this process by `kubectl logs` of a Deployment."""
    cluster.replace_process("logs", f"deployment/{name}", "--tail=100", "--all-containers")


def forward(cluster: Cluster) -> None:
    """Forward ports of this machine to Grafana, Prometheus and Alertmanager until Ctrl-C."""
    names = {str(item["metadata"]["name"]) for item in cluster.items("services", PART_OF)}
    running = []
    for name, port in FORWARDS.items():
        if name in names:
            running.append(cluster.popen("port-forward", f"service/{name}", f"{port}:{port}", "--address=127.0.0.1"))
            echo(f"{name}: http://127.0.0.1:{port}")
    if not running:
        raise CommandError("monitoring is not deployed: run `make k8s-monitoring-deploy`")
    secret = cluster.get("secret", ADMIN)
    if secret is not None and "grafana" in names:
        password = base64.b64decode(field(secret, "data.password", "")).decode()
        echo(f"Grafana: user admin, password {password}  (Ctrl-C ends)")
    try:
        for process in running:
            process.wait()
    finally:
        for process in running:
            process.terminate()


def ask(address: str, path: str) -> Any:
    """The JSON that Prometheus or Alertmanager answers at `path`. Raises CommandError when there is no answer."""
    try:
        with _DIRECT.open(f"{address}/{path}", timeout=20) as reply:
            return json.load(reply)
    except OSError as error:
        raise CommandError(f"{path} does not answer ({error})") from None


def _folder(name: str) -> Path:
    for folder in (HERE / name, HERE / "overlays" / name, Path(name)):
        if (folder / "kustomization.yaml").is_file():
            return folder
    raise CommandError(f"monitoring has no variant '{name}': use base, no-grafana, storage, or a folder with a kustomization.yaml")


def _password(cluster: Cluster) -> None:
    """Create a random password for Grafana's admin, unless there is one."""
    if cluster.get("secret", ADMIN) is None:
        cluster.run("create", "secret", "generic", ADMIN, f"--from-literal=password={secrets.token_urlsafe(24)}")
        echo(f"created the Secret {ADMIN} with a random password")


def main() -> int:
    """Run a command; the exit code is 0, 1 after a CommandError, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python3 -m monitoring.stack", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in ("deploy", "delete"):
        commands.add_parser(name).add_argument("folder")
    commands.choices["deploy"].add_argument("--timeout", type=int, default=300)
    for name in ("status", "port-forward"):
        commands.add_parser(name)
    commands.add_parser("logs").add_argument("what")
    arguments = parser.parse_args()
    cluster = Cluster.from_environment()
    try:
        match arguments.command:
            case "deploy":
                deploy(cluster, arguments.folder, arguments.timeout)
            case "delete":
                delete(cluster, arguments.folder)
            case "status":
                status(cluster)
            case "logs":
                logs(cluster, arguments.what)
            case "port-forward":
                forward(cluster)
    except CommandError as stop:
        sys.stderr.write(f"error: {stop}\n")
        return 1
    except (KeyboardInterrupt, subprocess.SubprocessError):
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
