"""secrets and signing-keys: create Secrets with random values.

Only missing Secrets are created: a Secret that is on the cluster, or comes from an operator of Secrets, stays as it is.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from kuberay.ctl import manifests
from kuberay.ctl.kube import KUBERAY, SECRET, Cluster, CommandError, Json, echo

SIGNING_KEY = "iris-api-signing-key"
VERIFY_KEY = "iris-api-verify-key"
EXAMPLE = KUBERAY / "base" / "secret.yaml.example"
_PUBLIC_KEY = re.compile(r"-----BEGIN PUBLIC KEY-----.+?-----END PUBLIC KEY-----\n?", re.DOTALL)


def _password() -> str:
    return secrets.token_hex(32)


def _client(name: str) -> dict[str, str]:
    return {"MLFLOW_TRACKING_USERNAME": name, "MLFLOW_TRACKING_PASSWORD": _password()}


GENERATED: dict[str, Callable[[], dict[str, str]]] = {
    "iris-redis": lambda: {"password": _password()},
    "mlflow-admin": lambda: {
        "MLFLOW_AUTH_ADMIN_USERNAME": "admin",
        "MLFLOW_AUTH_ADMIN_PASSWORD": _password(),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": _password(),
    },
    "mlflow-trainer": lambda: _client("iris-trainer"),
    "mlflow-replica": lambda: _client("iris-replica"),
}
"""The data of each Secret that this module creates when an overlay needs it."""


def create_secrets(cluster: Cluster, name: str) -> None:
    """Create the Secrets that the overlay `name` needs: K8S_SECRET with an API key, and those of GENERATED. Raises CommandError."""
    documents = manifests.build(cluster, manifests.overlay(name))
    if not manifests.of_kind(documents, "ExternalSecret"):
        if not cluster.secret_file.is_file() and cluster.get("secret", SECRET) is None:
            _write_secret_file(cluster.secret_file)
        apply_before(cluster, documents)
    create_missing(cluster, documents)
    echo("all Secrets exist")


def apply_before(cluster: Cluster, documents: list[Json]) -> None:
    """Apply the namespace and the user's own Secret, which other objects need; raises CommandError for a bad or missing Secret."""
    has_external_secret = bool(manifests.of_kind(documents, "ExternalSecret"))
    user_secrets = [] if has_external_secret else manifests.secret_documents(cluster)
    for batch in (manifests.of_kind(documents, "Namespace"), user_secrets):
        if batch:
            cluster.run("apply", "-f", "-", text=manifests.dump(batch), namespaced=False)


def create_missing(cluster: Cluster, documents: Iterable[Json]) -> None:
    """Create the Secrets of GENERATED that `documents` require.

    Raises CommandError when `documents` need the key pair of kuberay/components/signing and it is missing.
    """
    required = required_secrets(documents)
    if VERIFY_KEY in required and cluster.get("secret", VERIFY_KEY) is None:
        raise CommandError(f"the Secret {VERIFY_KEY} is missing: run `make k8s-signing-keys`")
    for name in sorted(required & set(GENERATED)):
        if cluster.get("secret", name) is None:
            create(cluster, name, GENERATED[name]())


def create(cluster: Cluster, name: str, data: dict[str, str]) -> None:
    """Create or replace one Secret."""
    labels = {"app.kubernetes.io/part-of": "iris-api"}
    document = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "labels": labels}, "stringData": data}
    # `apply` would repeat the values in an annotation.
    verb = "create" if cluster.get("secret", name) is None else "replace"
    cluster.run(verb, "-f", "-", text=json.dumps(document))
    echo(f"  Secret {name} {'created' if verb == 'create' else 'replaced'}")


def required_secrets(documents: Iterable[Json]) -> set[str]:
    """The names of the Secrets without which the pods of `documents` do not start."""
    return {name for kind, name, optional in manifests.references(list(documents)) if kind == "Secret" and not optional}


def used_secrets(cluster: Cluster, documents: Iterable[Json]) -> list[Json]:
    """The Secrets on the cluster that the pods of `documents` read, optional ones included."""
    names = sorted({name for kind, name, _ in manifests.references(list(documents)) if kind == "Secret"})
    return [secret for name in names if (secret := cluster.get("secret", name)) is not None]


def signing_keys(cluster: Cluster, *, rotate: bool, retire: bool) -> None:
    """Create the key pair of kuberay/components/signing when it is missing.

    `rotate` creates a new private key and keeps the public keys of older models. `retire` removes the older public keys, so that
    replicas serve only models signed with the newest key. Replicas get both with the next `make k8s-deploy`. Raises CommandError.
    """
    if cluster.get("namespace", cluster.namespace, namespaced=False) is None:
        for document in manifests.of_kind(manifests.build(cluster, manifests.overlay("api")), "Namespace"):
            cluster.run("apply", "-f", "-", text=json.dumps(document), namespaced=False)
    trusted = _PUBLIC_KEY.findall(manifests.secret_value(cluster.get("secret", VERIFY_KEY), "public.pem"))
    private = manifests.secret_value(cluster.get("secret", SIGNING_KEY), "private.pem")
    if private and not rotate and not retire:
        echo(f"the key pair exists already ({len(trusted)} public): nothing to do; new pair: make k8s-signing-keys ARGS=--rotate")
        return
    if rotate or not private:
        private = _openssl("genpkey", "-algorithm", "ed25519")
    public = _openssl("pkey", "-pubout", text=private)
    older = [] if retire else [key for key in trusted if key.strip() != public.strip()]
    # The public key first, so that a pod that starts in between does not refuse a model signed with the new key.
    create(cluster, VERIFY_KEY, {"public.pem": "".join(f"{key.strip()}\n" for key in (public, *older))})
    create(cluster, SIGNING_KEY, {"private.pem": private})
    steps = ["make k8s-train ARGS='--signing-key /etc/iris-api/signing/private.pem'", "make k8s-deploy OVERLAY=signing"]
    # Replicas that already verify need the new public key before training signs the first model with it.
    echo(f"next: {', then '.join(reversed(steps) if trusted else steps)}")


def _openssl(*arguments: str, text: str = "") -> str:
    if shutil.which("openssl") is None:
        raise CommandError("openssl is not installed (or not in PATH): install it, because it creates the key pair")
    process = subprocess.run(["openssl", *arguments], input=text, capture_output=True, text=True, check=False)  # noqa: S603, S607
    if process.returncode:
        raise CommandError(f"openssl {arguments[0]} failed: install OpenSSL 1.1.1 or newer, which has Ed25519")
    return process.stdout


def _write_secret_file(path: Path) -> None:
    """Write the example with a random key; only the owner can read the file."""
    text = re.sub(rf"{manifests.EXAMPLE_KEY}\S*", _password(), EXAMPLE.read_text())
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".secret-", delete=False) as file:  # mode 0600
        file.write(text)
    os.replace(file.name, path)
    echo(f"  {os.path.relpath(path)} written, with a random API_KEY")
