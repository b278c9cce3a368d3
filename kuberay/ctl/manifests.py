"""From the files in kuberay/ to what is applied: kustomize's output with the user's namespace, images and checksum in it."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path

from kuberay.ctl.kube import SECRET, Cluster, CommandError, field
from kuberay.ctl.reach import api_key

HERE = Path(__file__).resolve().parent.parent
SECRET_FILE = Path(os.environ.get("K8S_SECRET") or HERE / "base" / "secret.yaml")
MIN_KEY = 32


def overlay(name: str) -> Path:
    """Folder of a variant: overlays/NAME, or any path."""
    for folder in (HERE / "overlays" / name, Path(name)):
        if (folder / "kustomization.yaml").is_file():
            return folder
    known = ", ".join(sorted(path.parent.name for path in (HERE / "overlays").glob("*/kustomization.yaml")))
    raise CommandError(f"there is no overlay '{name}': use one of {known}, or a folder with a kustomization.yaml")


def build(cluster: Cluster, folder: Path) -> list[str]:
    """The documents of a kustomization, ready to apply (but for the checksum)."""
    text = cluster.run("kustomize", str(folder), namespaced=False)
    return [place(cluster, document) for document in re.split(r"^---\n", text, flags=re.MULTILINE) if document.strip()]


def place(cluster: Cluster, text: str) -> str:
    """The same YAML for the user's namespace and images."""
    text = re.sub(r"\bmlops\b", cluster.namespace, text)
    text = re.sub(r"(image: )iris-api:latest$", rf"\g<1>{cluster.serve_image}", text, flags=re.MULTILINE)
    return re.sub(r"(image: )iris-train:latest$", rf"\g<1>{cluster.train_image}", text, flags=re.MULTILINE)


def kind(document: str) -> str:
    found = re.search(r"^kind: (\w+)$", document, re.MULTILINE)
    return found.group(1) if found else ""


def stamp(cluster: Cluster, documents: list[str]) -> list[str]:
    """Put the checksum of ConfigMaps and Secret into the pod templates: when one of them changes, new pods are made."""
    digest = hashlib.sha256()
    for document in documents:
        if kind(document) == "ConfigMap":
            digest.update(document.encode())
    digest.update(json.dumps(field(cluster.get("secret", SECRET), "data", {}), sort_keys=True).encode())
    value = digest.hexdigest()[:16]
    return [re.sub(r"(iris-api/config-checksum: )unset$", rf'\g<1>"{value}"', text, flags=re.MULTILINE) for text in documents]


def check_secret(cluster: Cluster) -> str | None:
    """The Secret's YAML when there is a file; None when it is on the cluster already. Raises Stop when it is nowhere or useless."""
    if SECRET_FILE.is_file():
        text = SECRET_FILE.read_text()
        found = re.search(r"^\s*API_KEY:\s*[\"']?([^\"'\n]*?)[\"']?\s*$", text, re.MULTILINE)
        _check_key(found.group(1) if found else "", SECRET_FILE.name)
        return place(cluster, text)
    if cluster.get("secret", SECRET) is not None:
        _check_key(api_key(cluster), f"the Secret {SECRET}")
        return None
    raise CommandError(
        f"{os.path.relpath(SECRET_FILE)} is missing: make one with "
        'sed "s/replace-me.*/$(openssl rand -hex 32)/" kuberay/base/secret.yaml.example > kuberay/base/secret.yaml'
    )


def _check_key(key: str, where: str) -> None:
    if len(key) < MIN_KEY or key.startswith("replace-me"):
        raise CommandError(f"API_KEY in {where} must be at least {MIN_KEY} characters of your own: openssl rand -hex 32")
