"""Builds the objects to apply from the files in kuberay/: kustomize sets the namespace and the images, and the result is JSON.

A temporary kustomization over the user's folder does this, so this module reads and writes no YAML.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from kuberay.ctl.kube import KUBERAY, NAMESPACE, SECRET, SERVE_IMAGE, TRAIN_IMAGE, Cluster, CommandError, Json, field
from serve_app.http.key_strength import weakness

CHECKSUM = "iris-api/config-checksum"
"""Annotation of pod templates whose pods read settings at their start (RayService, MLflow, Redis): new settings need new pods.

Settings in a generated ConfigMap do not need it, because the name of the ConfigMap changes (docs/how-to/gitops.md).
"""
LIVE_KEYS = ("API_KEY", "API_KEY_PREVIOUS")
"""Keys of the Secret iris-api-secrets that running replicas read again: a new value needs no new pods."""
UNSET = "unset"
"""The value of the annotation in kuberay/base/rayservice.yaml; a value that the user set stays."""
_REFERENCES = {
    **dict.fromkeys(("configMap", "configMapRef", "configMapKeyRef"), "ConfigMap"),
    **dict.fromkeys(("secret", "secretRef", "secretKeyRef"), "Secret"),
}
"""The fields of a pod's spec that name a ConfigMap or a Secret."""
EXAMPLE_KEY = "replace-me"


class Reference(NamedTuple):
    """A ConfigMap or Secret with settings of a pod; the pod also starts without an optional one."""

    kind: str
    name: str
    optional: bool


def overlay(name: str) -> Path:
    """The folder kuberay/overlays/NAME, or any folder with a kustomization.yaml; raises CommandError when neither exists."""
    for folder in (KUBERAY / "overlays" / name, Path(name)):
        if (folder / "kustomization.yaml").is_file():
            return folder
    names = ", ".join(sorted(path.parent.name for path in (KUBERAY / "overlays").glob("*/kustomization.yaml")))
    raise CommandError(f"the overlay '{name}' does not exist: use one of {names}, or a folder with a kustomization.yaml")


def build(cluster: Cluster, source: Path) -> list[Json]:
    """The objects of a kustomization's folder or of one manifest, in the namespace and with the images of `cluster`."""
    with tempfile.TemporaryDirectory(prefix="iris-api-") as name:
        folder = Path(name).resolve()
        if source.is_file():
            # kustomize reads no file outside its folder.
            shutil.copy(source, folder / "manifest.yaml")
            resource = "manifest.yaml"
        else:
            resource = os.path.relpath(source.resolve(), folder)
        (folder / "kustomization.yaml").write_text(json.dumps(kustomization(cluster, resource)))
        documents = parse(cluster, cluster.run("kustomize", str(folder), namespaced=False))
    name_volumes(cluster, documents)
    return documents


def name_volumes(cluster: Cluster, documents: list[Json]) -> None:
    """Add the namespace to the names of volumes, except in `mlops`, because volumes have no namespace and names would clash."""
    if cluster.namespace == NAMESPACE:
        return
    names = {
        one["metadata"]["name"]: f"{one['metadata']['name']}-{cluster.namespace}" for one in of_kind(documents, "PersistentVolume")
    }
    for document in documents:
        if document["kind"] == "PersistentVolume":
            document["metadata"]["name"] = names[document["metadata"]["name"]]
        elif document["kind"] == "PersistentVolumeClaim" and (volume := field(document, "spec.volumeName")) in names:
            document["spec"]["volumeName"] = names[volume]


def kustomization(cluster: Cluster, resource: str) -> Json:
    """The kustomization over `resource`; an image that the user did not set stays as the folder has it."""
    images = [
        image_override(default, reference)
        for default, reference in ((SERVE_IMAGE, cluster.serve_image), (TRAIN_IMAGE, cluster.train_image))
        if reference != default
    ]
    return {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": cluster.namespace,
        "resources": [resource],
        "images": images,
    }


def image_override(name: str, reference: str) -> dict[str, str]:
    """The entry of kustomize's `images` that replaces the image `name` with `reference` (registry:port/path:tag@digest)."""
    path, _, digest = reference.partition("@")
    repository, colon, tag = path.rpartition(":")
    if not colon or "/" in tag:  # no colon, or the colon before a registry's port
        repository, tag = path, "" if digest else "latest"
    override = {"name": name.partition(":")[0], "newName": repository, "newTag": tag, "digest": digest}
    return {key: value for key, value in override.items() if value}


def parse(cluster: Cluster, text: str) -> list[Json]:
    """The objects of a YAML stream. kubectl converts it without a cluster, because this package has no YAML library."""
    output = cluster.run("patch", "--local", "-f", "-", "--type=merge", "-p", "{}", "-o", "json", text=text, namespaced=False)
    documents: list[Json] = []
    decoder, position = json.JSONDecoder(), 0
    while rest := output[position:].lstrip():
        document, length = decoder.raw_decode(rest)
        documents.append(document)
        position = len(output) - len(rest) + length
    return documents


def dump(documents: Iterable[Json]) -> str:
    """The objects as one List, for `kubectl apply -f -`."""
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": list(documents)})


def of_kind(documents: Iterable[Json], kind: str) -> list[Json]:
    """The objects of one kind."""
    return [document for document in documents if document["kind"] == kind]


def references(value: Any) -> set[Reference]:
    """The ConfigMaps and Secrets that the pods inside `value` (documents, or a part of one) read."""
    names: set[Reference] = set()
    if isinstance(value, dict):
        for key, inner in value.items():
            kind = _REFERENCES.get(key)
            name = (inner.get("name") or inner.get("secretName")) if kind and isinstance(inner, dict) else None
            names |= {Reference(kind, name, bool(inner.get("optional")))} if kind and name else references(inner)
    elif isinstance(value, list):
        names = set().union(*map(references, value))
    return names


def set_checksum(documents: list[Json], secrets: Iterable[Json]) -> None:
    """Write the checksum of its ConfigMaps and Secrets into each pod template that has the annotation."""
    data = {(one["kind"], one["metadata"]["name"]): one.get("data", {}) for one in (*of_kind(documents, "ConfigMap"), *secrets)}
    keys = data.get(("Secret", SECRET), {})
    data["Secret", SECRET] = {name: value for name, value in keys.items() if name not in LIVE_KEYS}
    for document in documents:
        names = sorted({(kind, name) for kind, name, _ in references(document)} & set(data))
        settings = [[*name, data[name]] for name in names]
        checksum = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
        for template in _pod_templates(document):
            annotations = field(template, "metadata.annotations", {})
            if annotations.get(CHECKSUM) == UNSET:
                annotations[CHECKSUM] = checksum


def _pod_templates(document: Json) -> list[Json]:
    """The pod templates of a RayService, a Deployment or a StatefulSet."""
    cluster_spec = field(document, "spec.rayClusterConfig", {})
    groups = [cluster_spec.get("headGroupSpec", {}), *cluster_spec.get("workerGroupSpecs", []), document.get("spec", {})]
    return [group["template"] for group in groups if "template" in group]


def secret_documents(cluster: Cluster) -> list[Json]:
    """The objects of K8S_SECRET, in the user's namespace; empty when the cluster has the Secret already.

    Raises CommandError when the Secret does not exist, or holds no API key or an unsafe one.
    """
    if cluster.secret_file.is_file():
        documents = parse(cluster, cluster.secret_file.read_text())
        for document in documents:
            document["metadata"]["namespace"] = cluster.namespace
        keys = [secret_value(one, "API_KEY") for one in documents if one["metadata"]["name"] == SECRET]
        check_key(keys[0] if keys else "", cluster.secret_file.name)
        return documents
    secret = cluster.get("secret", SECRET)
    if secret is None:
        file = os.path.relpath(cluster.secret_file)
        raise CommandError(
            f"{file} is missing: run `make k8s-secrets`, or create it with "
            f'sed "s/replace-me.*/$(openssl rand -hex 32)/" kuberay/base/secret.yaml.example > {file}'
        )
    check_key(secret_value(secret, "API_KEY"), f"the Secret {SECRET}")
    return []


def secret_value(secret: Json | None, key: str) -> str:
    """A value of a Secret, from `stringData` or decoded from `data`; empty when the key is missing."""
    plain: dict[str, Any] = field(secret, "stringData") or {}
    encoded: dict[str, Any] = field(secret, "data") or {}
    return str(plain[key]) if key in plain else base64.b64decode(encoded.get(key) or "").decode()


def check_key(key: str, where: str) -> None:
    """Raise CommandError for an API key that replicas in production refuse."""
    reason = weakness(key)
    if reason is not None:
        raise CommandError(f"API_KEY in {where} {reason}: put the output of `openssl rand -hex 32` there")
