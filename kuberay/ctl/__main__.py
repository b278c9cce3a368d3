"""`python3 -m kuberay.ctl COMMAND`: the commands behind `make k8s-*`, for the cluster that K8S_NS, KUBECONFIG and KUBECTL name."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable

from kuberay.ctl import adopt, api_client, backup, clean, data, deploy, doctor, node_port, secrets, status, train
from kuberay.ctl.kube import Cluster, CommandError
from kuberay.ctl.smoke_test import smoke_test
from kuberay.ctl.store_job import store_command

Handler = Callable[[Cluster, argparse.Namespace], int | None]


def parser() -> argparse.ArgumentParser:
    """The command line; each command stores its handler in the default `handler`."""
    result = argparse.ArgumentParser(prog="python3 -m kuberay.ctl", description=__doc__)
    commands = result.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, help_text: str, handler: Handler) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=help_text)
        command.set_defaults(handler=handler)
        return command

    command = add("setup", "install the KubeRay operator", lambda cluster, options: deploy.setup(cluster, options.version))
    command.add_argument("--version", required=True)
    command = add(
        "deploy",
        "apply an overlay and wait until the API answers",
        lambda cluster, options: deploy.deploy(cluster, options.overlay),
    )
    command.add_argument("overlay")
    command = add(
        "secrets", "create the Secrets that are missing", lambda cluster, options: secrets.create_secrets(cluster, options.overlay)
    )
    command.add_argument("overlay")
    command = add(
        "signing-keys",
        "create the key pair for signed models",
        lambda cluster, options: secrets.signing_keys(cluster, rotate=options.rotate, retire=options.retire),
    )
    command.add_argument("--rotate", action="store_true", help="create a new private key and keep the public keys of older models")
    command.add_argument("--retire", action="store_true", help="remove the public keys of older models")
    for name, help_text, run_job in (
        ("train", "run the training job and wait for its model", train.train),
        ("score", "run a bulk scoring job and print its output", train.score),
    ):
        command = add(name, help_text, functools.partial(_run_job, run_job))
        command.add_argument("folder")
        command.add_argument("--arguments", default="", help="flags for the job's command")
        command.add_argument("--data", default="", help="table: a file or folder on this machine, a URL, or a path in the claim")
    command = add(
        "adopt",
        "run the job that adopts a fitted model and wait until replicas serve it",
        lambda cluster, options: adopt.adopt(cluster, options.folder, options.model, options.sample, options.arguments),
    )
    command.add_argument("folder")
    command.add_argument(
        "--model", default="", help="model: a file or folder on this machine, an address in MLflow, or a path in the claim"
    )
    command.add_argument("--sample", default="", help="table, in the same forms as `--data` of train")
    command.add_argument("--arguments", default="", help="flags for `iris-api adopt`")
    _add_data(add("data", "list, copy or remove the files in the claim", lambda cluster, _: data.list_files(cluster)))
    add("status", "what runs", lambda cluster, _: status.status(cluster))
    command = add(
        "logs", "print the application's logs", lambda cluster, options: status.logs(cluster, options.lines, options.follow)
    )
    command.add_argument("--lines", type=int, default=50)
    command.add_argument("--follow", action="store_true")
    add("test", "check the health, send a prediction, and print a verdict", lambda cluster, _: smoke_test(cluster))
    command = add(
        "forward",
        "forward a port of this machine to a Service",
        lambda cluster, options: api_client.forward(cluster, options.target, options.port),
    )
    command.add_argument("target", choices=("api", "mlflow"))
    command.add_argument("port", type=int)
    command = add(
        "nodeport",
        "open a port on every node for the API",
        lambda cluster, options: node_port.open_node_port(cluster, options.port),
    )
    command.add_argument("port", type=int)
    add("models", "list the models in the store", lambda cluster, _: store_command(cluster, "list"))
    command = add("promote", "serve a version", lambda cluster, options: store_command(cluster, "promote", options.version))
    command.add_argument("version")
    add(
        "rollback",
        "serve the newest undamaged version that is older than the served one",
        lambda cluster, _: store_command(cluster, "rollback"),
    )
    command = add(
        "backup",
        "write the content of the volumes into one archive",
        lambda cluster, options: backup.backup(cluster, options.to, data=options.data, secrets_to=options.secrets),
    )
    command.add_argument("--to", default="", help="path of the new archive (default: iris-api-NAMESPACE-TIME.tar)")
    command.add_argument("--data", action="store_true", help="include the tables of data-pvc")
    command.add_argument("--secrets", default="", metavar="FILE", help="also write the Secrets into this file")
    command = add(
        "restore",
        "restore an archive of `backup`",
        lambda cluster, options: backup.restore(cluster, options.archive, merge=options.merge),
    )
    command.add_argument("archive")
    command.add_argument("--merge", action="store_true", help="allow volumes that are not empty, and add only what they lack")
    add("delete", "remove the workloads", lambda cluster, _: clean.delete(cluster))
    add("clean", "remove everything", lambda cluster, _: clean.clean(cluster))
    add("doctor", "check for known faults", lambda cluster, _: 1 if doctor.doctor(cluster) else 0)
    return result


def _add_data(command: argparse.ArgumentParser) -> None:
    verbs = command.add_subparsers(metavar="VERB")
    verbs.add_parser("list", help="list the files with their sizes (the default)")
    verb = verbs.add_parser("get", help="copy a file or folder to this machine")
    verb.add_argument("path", help="path in the claim, like out/table")
    verb.add_argument("folder", nargs="?", default=".", help="folder on this machine (default: the current folder)")
    verb.set_defaults(handler=lambda cluster, options: data.get_files(cluster, options.path, options.folder))
    verb = verbs.add_parser("remove", help="remove a file or folder from the claim")
    verb.add_argument("path", help="path in the claim, like in/table.csv")
    verb.set_defaults(handler=lambda cluster, options: data.remove_files(cluster, options.path))


def _run_job(run_job: Callable[[Cluster, str, str, str], None], cluster: Cluster, options: argparse.Namespace) -> None:
    run_job(cluster, options.folder, options.arguments, options.data)


def main() -> int:
    """Run one command; the exit code is 0, 1 for an error or a fault, 130 after Ctrl-C."""
    options = parser().parse_args()
    try:
        return options.handler(Cluster.from_environment(), options) or 0
    except CommandError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
