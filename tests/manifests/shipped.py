"""The YAML in kuberay/, read once: documents, pods, containers."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
KUBERAY = ROOT / "kuberay"
Json = dict[str, Any]


def files() -> list[Path]:
    """Every manifest but the real Secret of a user."""
    paths = [*KUBERAY.rglob("*.yaml"), *KUBERAY.rglob("*.yaml.example")]
    return sorted(path for path in paths if path.name != "secret.yaml")


def kustomizations() -> list[Path]:
    """Folders that kustomize builds by themselves (components are built by those that use them)."""
    return sorted(path.parent for path in KUBERAY.rglob("kustomization.yaml") if "kind: Component" not in path.read_text())


@functools.cache
def documents() -> list[tuple[str, Json]]:
    """(file, document) of everything that is applied: no kustomizations, no patches."""
    named = []
    for path in files():
        if path.name == "kustomization.yaml" or path.name.startswith("patch"):
            continue
        name = str(path.relative_to(KUBERAY))
        named += [(name, document) for document in yaml.safe_load_all(path.read_text()) if document and "kind" in document]
    return named


def one(kind: str, name: str) -> Json:
    matching = [document for _, document in documents() if document["kind"] == kind and document["metadata"]["name"] == name]
    assert len(matching) == 1, f"{len(matching)} x {kind} {name}"
    return matching[0]


def pod_templates(value: Any, path: str = "") -> Iterator[tuple[str, Json]]:
    """Every pod template inside a document, with its path: Deployments, Jobs, Ray groups alike."""
    if isinstance(value, dict):
        for name in ("template", "submitterPodTemplate"):
            if isinstance(value.get(name), dict) and "containers" in value[name].get("spec", {}):
                yield f"{path}.{name}", value[name]
        for key, inner in value.items():
            yield from pod_templates(inner, f"{path}.{key}")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from pod_templates(inner, f"{path}[{index}]")


def all_pod_templates() -> list[tuple[str, Json]]:
    return [
        (f"{file}: {document['kind']} {document['metadata'].get('name', '')}{path}", template)
        for file, document in documents()
        for path, template in pod_templates(document)
    ]


def locked(package: str, lock: str = "serve") -> str:
    """The version of a package in a lock file."""
    match = re.search(rf"^{re.escape(package)}==(\S+)", (ROOT / "requirements" / f"{lock}.txt").read_text(), re.MULTILINE)
    assert match is not None, f"{package} is not in requirements/{lock}.txt"
    return match.group(1)
