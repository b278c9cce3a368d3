"""Every custom resource against the definitions of its operator, which are not part of this repository.

`CRDS` names their folders, separated by colons, e.g. config/crd/bases of KubeRay 1.6.2 and of 1.7.0: each folder is a parameter of
the test, so both versions are checked in one run. Without it the test takes the definitions of the cluster that kubectl reaches.
"""

from __future__ import annotations

import copy
import functools
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
import yaml

from tests.manifests.shipped import KUBERAY, Json, documents, kustomizations

FOLDERS = [folder for folder in os.environ.get("CRDS", "").split(":") if folder]
Schemas = dict[tuple[str, str], Json]
"""The schema of each (apiVersion, kind)."""


def definitions(folder: str) -> list[Json]:
    """The CustomResourceDefinitions of a folder, or of the cluster when there is no folder."""
    if folder:
        found = [one for path in sorted(Path(folder).glob("*.yaml")) for one in yaml.load_all(path.read_text(), yaml.CSafeLoader)]
        return [one for one in found if one and one["kind"] == "CustomResourceDefinition"]
    if shutil.which("kubectl") is None:
        return []
    command = ["kubectl", "get", "customresourcedefinitions", "-o", "json", "--request-timeout=5s"]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    return list(json.loads(process.stdout)["items"]) if process.returncode == 0 else []


def schemas(folder: str) -> Schemas:
    found: Schemas = {}
    for definition in definitions(folder):
        spec = definition["spec"]
        for version in spec["versions"]:
            name = (f"{spec['group']}/{version['name']}", spec["names"]["kind"])
            found[name] = closed(copy.deepcopy(version["schema"]["openAPIV3Schema"]))
    return found


def closed(schema: Any) -> Any:
    """The schema with every object closed to fields that it does not name: the API server would drop them without a word."""
    if isinstance(schema, dict):
        if schema.get("x-kubernetes-int-or-string"):
            return {"type": ["integer", "string"]}
        if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
            schema.setdefault("additionalProperties", False)
        if schema.get("x-kubernetes-embedded-resource") or schema.get("properties", {}).keys() >= {
            "apiVersion",
            "kind",
            "metadata",
        }:
            schema["properties"] = {"apiVersion": {}, "kind": {}} | schema.get("properties", {}) | {"metadata": {"type": "object"}}
        for name, inner in schema.items():
            if name == "metadata" and inner == {"type": "object"}:
                continue
            schema[name] = closed(inner)
    elif isinstance(schema, list):
        return [closed(one) for one in schema]
    return schema


@functools.cache
def custom_resources() -> list[tuple[str, Json]]:
    """(origin, object) of what kustomize renders, and of the files for other controllers."""
    rendered = []
    for folder in kustomizations():
        process = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=True)
        rendered += [(str(folder.relative_to(KUBERAY)), one) for one in yaml.load_all(process.stdout, yaml.CSafeLoader)]
    return rendered + [(file, document) for file, document in documents() if file.startswith("gitops/")]


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="NOT TESTED: kubectl is not installed, so no kustomization was built")
@pytest.mark.parametrize("folder", FOLDERS or [""], ids=lambda folder: folder or "cluster")
def test_every_custom_resource_fits_the_definition_of_its_operator(folder: str) -> None:
    known = schemas(folder)
    checked = 0
    for origin, document in custom_resources():
        schema = known.get((document["apiVersion"], document["kind"]))
        if schema is not None:
            checked += 1
            errors = [
                f"{error.json_path}: {error.message[:200]}"
                for error in jsonschema.Draft202012Validator(schema).iter_errors(document)
            ]
            assert errors == [], (origin, document["kind"], document["metadata"]["name"])
            misspelt = document | {"spec": {**document["spec"], "misspelt": 1}}
            assert not jsonschema.Draft202012Validator(schema).is_valid(misspelt)
    if not checked:
        pytest.skip(f"NOT TESTED: no definition of a custom resource in {folder or 'CRDS, and no cluster'}")
