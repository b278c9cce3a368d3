"""`python3 -m kuberay.ctl COMMAND`: what the make targets k8s-* call. Where to: K8S_NS, KUBECONFIG, KUBECTL."""

from __future__ import annotations

import argparse
import sys

from kuberay.ctl import clean, deploy, doctor, look, store, train
from kuberay.ctl.kube import Cluster, CommandError


def main() -> int:
    parser = argparse.ArgumentParser(prog="python3 -m kuberay.ctl", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, meaning: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=meaning)

    add("setup", "install the KubeRay operator").add_argument("--version", required=True)
    add("deploy", "apply an overlay and wait until it answers").add_argument("overlay")
    command = add("train", "run the training job and wait for its model")
    command.add_argument("folder")
    command.add_argument("--arguments", default="")
    command = add("score", "run a bulk scoring and follow it")
    command.add_argument("folder")
    command.add_argument("--arguments", default="")
    add("status", "what runs")
    command = add("logs", "the application's logs")
    command.add_argument("--lines", type=int, default=50)
    command.add_argument("--follow", action="store_true")
    add("test", "a prediction, with a verdict")
    command = add("forward", "a port of this machine for a Service")
    command.add_argument("what", choices=("api", "mlflow"))
    command.add_argument("port", type=int)
    add("models", "list the store")
    add("promote", "serve a version").add_argument("version")
    add("rollback", "serve the version before")
    add("delete", "remove the workloads")
    add("clean", "remove everything")
    add("doctor", "look for known failures")
    chosen = parser.parse_args()
    cluster = Cluster.from_environment()
    try:
        return run(cluster, chosen)
    except CommandError as stop:
        sys.stderr.write(f"error: {stop}\n")
        return 1
    except KeyboardInterrupt:
        return 130


def run(cluster: Cluster, chosen: argparse.Namespace) -> int:
    match chosen.command:
        case "setup":
            deploy.setup(cluster, chosen.version)
        case "deploy":
            deploy.deploy(cluster, chosen.overlay)
        case "train":
            train.train(cluster, chosen.folder, chosen.arguments)
        case "score":
            train.score(cluster, chosen.folder, chosen.arguments)
        case "status":
            look.status(cluster)
        case "logs":
            look.logs(cluster, chosen.lines, chosen.follow)
        case "test":
            look.test(cluster)
        case "forward":
            look.forward(cluster, chosen.what, chosen.port)
        case "models":
            store.command(cluster, "list")
        case "promote":
            store.command(cluster, "promote", chosen.version)
        case "rollback":
            store.command(cluster, "rollback")
        case "delete":
            clean.delete(cluster)
        case "clean":
            clean.clean(cluster)
        case "doctor":
            return 1 if doctor.doctor(cluster) else 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
