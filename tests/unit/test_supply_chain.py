"""What is in the repository and in its workflows: no secrets, no binaries, nothing with more rights than it needs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.figures import NONE, RECORDS, Records, figure_of, filled, is_of, number_in, record_of
from tests.support.promises import PAGES, Number

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
SECRETS = {
    "a private key": re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----\s+[A-Za-z0-9+/=]{40}"),
    "a key of ours": re.compile(rb"\biris_[A-Za-z0-9_-]{43}\b"),
    "a cloud's key": re.compile(rb"\b(AKIA|ASIA)[0-9A-Z]{16}\b|\bAIza[0-9A-Za-z_-]{35}\b"),
    "a forge's token": re.compile(rb"\b(gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{60,}|glpat-[A-Za-z0-9_-]{20})\b"),
    "a web token": re.compile(rb"\beyJ[A-Za-z0-9_-]{20,}\.eyJ[A-Za-z0-9_-]{20,}\.[A-Za-z0-9_-]{20,}"),
}


def files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    return [path for name in listed.split(b"\0") if name and (path := ROOT / name.decode()).is_file()]


def test_no_secret_is_in_the_tree() -> None:
    assert len(files()) > 100
    found = [f"{path}: {what}" for path in files() for what, pattern in SECRETS.items() if pattern.search(path.read_bytes())]
    assert found == []


@pytest.mark.parametrize(
    "text",
    [b"-----BEGIN PRIVATE KEY-----\n" + b"M" * 64, b"key: iris_" + b"a" * 43, b"AKIA" + b"A" * 16, b"ghp_" + b"a" * 36],
)
def test_a_secret_would_be_found(text: bytes) -> None:
    assert any(pattern.search(text) for pattern in SECRETS.values())


def test_nothing_compiled_is_in_the_tree() -> None:
    magic = (b"\x7fELF", b"MZ\x90", b"\xcf\xfa\xed\xfe", b"PK\x03\x04", b"\x80\x04\x95", b"\x80\x05\x95")
    assert [path for path in files() if path.read_bytes()[:4].startswith(tuple(one[:4] for one in magic))] == []


def test_every_package_is_pinned_with_hashes_and_no_address() -> None:
    for name in ("serve", "serve-boost", "train", "dev", "build", "clients", "clients-mlserver"):
        least = 5 if name == "build" else 50
        text = (ROOT / "requirements" / f"{name}.txt").read_text()
        packages = re.findall(r"^[A-Za-z0-9._-]+(?:\[[^]]*\])?==[^ ;\\]+.*$(?:\n    --hash=.*)*", text, re.MULTILINE)
        assert len(packages) >= least
        assert all("--hash=sha256:" in package for package in packages)
        assert "://" not in re.sub(r"#.*", "", text)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_has_only_the_rights_it_names(path: Path) -> None:
    workflow: dict[Any, Any] = yaml.safe_load(path.read_text())
    triggers: dict[str, Any] = workflow.get("on") or workflow[True]  # `on` is a truth to YAML
    assert workflow["permissions"] == {}
    assert "pull_request_target" not in triggers
    assert "workflow_run" not in triggers
    for job in workflow["jobs"].values():
        assert set(job["permissions"]) <= {"contents", "packages", "id-token"}
        assert job["permissions"]["contents"] == "read"
        if "pull_request" in triggers:
            assert set(job["permissions"].values()) == {"read"}
        if "uses" in job:
            assert (ROOT / job["uses"]).is_file()
            continue
        assert job["timeout-minutes"] <= 60
        for step in job["steps"]:
            if "uses" in step:
                assert re.fullmatch(r"[\w.-]+/[\w./-]+@[0-9a-f]{40}", step["uses"])
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False
            assert "${{" not in step.get("run", "")  # what an event brings is no part of a script


def workflow(name: str) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((ROOT / ".github" / "workflows" / name).read_text())
    return document


def test_continuous_integration_runs_the_tiers_of_the_gate_once() -> None:
    gate = (ROOT / ".ci" / "run").read_text()
    jobs = "\n".join(step.get("run", "") for job in workflow("ci.yml")["jobs"].values() for step in job.get("steps", ()))
    tiers = re.findall(r"^make (test-\w+)$", gate, re.MULTILINE)
    assert {"test-integration", "test-faults"} <= set(tiers)
    assert len(tiers) == len(set(tiers))
    assert re.findall(r"test-\w+", jobs) == []
    assert jobs.count(".ci/run") == 1


def test_a_release_waits_for_the_gate_and_for_the_comparison_of_versions() -> None:
    jobs = workflow("release.yml")["jobs"]
    assert jobs["images"]["needs"] == "tests"
    assert jobs["tests"]["uses"].endswith("/ci.yml")
    assert jobs["tests"]["needs"] == "version"


@pytest.mark.parametrize(
    ("tag", "section", "code"), [("v1.2.3", "1.2.3", 0), ("v1.2.4", "1.2.3", 1), ("1.2.3", "1.2.3", 1), ("v1.2.3", "Unreleased", 1)]
)
def test_a_tag_is_released_when_package_and_changelog_have_its_version(tmp_path: Path, tag: str, section: str, code: int) -> None:
    for folder in (".ci", "serve_app"):
        (tmp_path / folder).mkdir()
    script = tmp_path / ".ci" / "release-version"
    script.write_bytes((ROOT / ".ci" / "release-version").read_bytes())
    (tmp_path / "serve_app" / "__init__.py").write_text('__version__ = "1.2.3"\n')
    (tmp_path / "CHANGELOG.md").write_text(f"# Changelog\n\n## [{section}]\n")
    assert subprocess.run([sys.executable, script, tag], capture_output=True, check=False).returncode == code


def build_of_images() -> str:
    return "\n".join(step.get("run", "") for step in workflow("release.yml")["jobs"]["images"]["steps"])


def test_a_released_image_is_built_from_the_digest_of_its_base_and_says_so() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    stages = set(re.findall(r"^FROM \S+ AS (\S+)$", dockerfile, re.MULTILINE))
    assert set(re.findall(r"^FROM (\S+)", dockerfile, re.MULTILINE)) - stages == {"${PYTHON_IMAGE}"}
    script = build_of_images()
    assert script.index(".ci/image-digests --base") < script.index("docker build")
    assert "--build-arg PYTHON_IMAGE" in script
    assert "org.opencontainers.image.base.digest=" in script


IMAGES = ["serve", "train", "serve-boost", "train-boost"]


def test_every_image_of_the_dockerfile_is_released_and_was_built_in_continuous_integration() -> None:
    last_stages = set(re.findall(r"^#   docker build --target (\S+) ", (ROOT / "Dockerfile").read_text(), re.MULTILINE))
    assert last_stages == set(IMAGES)
    steps = [step.get("run", "") for step in workflow("ci.yml")["jobs"]["image"]["steps"]]
    assert {match[1] for step in steps if (match := re.match(r"docker build --target (\S+) ", step))} == set(IMAGES)
    resolve = workflow("release.yml")["jobs"]["digests"]["steps"][-1]["run"]
    assert set(re.findall(r"=\$IMAGE-([\w-]+):\$TAG", resolve)) == set(IMAGES)


def test_every_image_has_a_list_of_its_packages_and_the_one_of_two_locks_names_each_once() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert set(re.findall(r"-o build/sbom-(\S+)\.json", makefile)) == set(IMAGES)
    program = re.search(r"^ONCE := (.+)$", makefile, re.MULTILINE)
    assert program is not None
    locks = [ROOT / "requirements" / f"{name}.txt" for name in ("train", "serve-boost")]
    command = ["awk", program[1].replace("$$", "$"), *map(str, locks)]
    merged = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    pinned = r"^[A-Za-z0-9]\S*==[^ \n]+"  # a package may have another version for a newer Python
    packages = re.findall(pinned, merged, re.MULTILINE)
    assert len(packages) == len(set(packages))
    assert set(packages) == {package for lock in locks for package in re.findall(pinned, lock.read_text(), re.MULTILINE)}
    assert {"catboost", "lightgbm", "mlflow"} <= {package.partition("==")[0] for package in packages}


def test_a_release_has_both_platforms_and_both_were_run() -> None:
    images, index = (workflow("release.yml")["jobs"][name] for name in ("images", "index"))
    matrix = images["strategy"]["matrix"]
    assert {one["platform"]: one["runner"] for one in matrix["include"]} == {"amd64": "ubuntu-24.04", "arm64": "ubuntu-24.04-arm"}
    assert index["strategy"]["matrix"]["target"] == matrix["target"] == IMAGES
    script = build_of_images()
    assert script.index("docker build") < script.index("docker run") < script.index("docker push")
    joined = "\n".join(step.get("run", "") for step in index["steps"])
    assert all(f'"$IMAGE:$TAG-{platform}"' in joined for platform in matrix["platform"])
    assert ".ci/wheels aarch64" in [step.get("run") for step in workflow("ci.yml")["jobs"]["image"]["steps"]]


@pytest.mark.parametrize("job", ["images", "index"])
def test_a_released_image_is_signed_and_has_an_sbom_and_a_provenance(job: str) -> None:
    script = "\n".join(step.get("run", "") for step in workflow("release.yml")["jobs"][job]["steps"])
    assert "cosign sign " in script
    assert set(re.findall(r"cosign attest --yes --type (\w+)", script)) == {"cyclonedx", "slsaprovenance1"}


def run_script(name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / ".ci" / name, *arguments],
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def registry(folder: Path, line: str) -> str:
    """A PATH with a `docker` that prints `line`, in place of the client of a registry."""
    program = folder / "docker"
    program.write_text(f"#!/bin/sh\necho '{line}'\n")
    program.chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def test_every_image_of_the_manifests_gets_a_digest(tmp_path: Path) -> None:
    path = registry(tmp_path, f"sha256:{'a' * 64}")
    own = ("iris-api=registry.example:5000/iris-api:1.4.0", "iris-train=registry.example:5000/iris-train:1.4.0")
    component = yaml.safe_load(run_script("image-digests", *own, PATH=path).stdout)
    assert component["kind"] == "Component"
    images = {image["name"]: image for image in component["images"]}
    assert images["iris-api"] == {"name": "iris-api", "newName": "registry.example:5000/iris-api", "digest": f"sha256:{'a' * 64}"}
    assert {"iris-train", "redis", "docker.io/prom/prometheus", "docker.io/grafana/grafana"} <= set(images)
    assert run_script("image-digests", "--base", PATH=path).stdout == f"PYTHON_IMAGE=python:3.11-slim-bookworm@sha256:{'a' * 64}\n"


def test_an_image_without_a_digest_stops_the_release(tmp_path: Path) -> None:
    process = run_script("image-digests", "--base", PATH=registry(tmp_path, "no such image"))
    assert (process.returncode, process.stdout) == (1, "")
    assert run_script("provenance", "serve", "python:3.11", **RELEASE).returncode == 1


RELEASE = {
    "GITHUB_SERVER_URL": "https://forge.example",
    "GITHUB_REPOSITORY": "team/iris-api",
    "GITHUB_REF": "refs/tags/v1.4.0",
    "GITHUB_SHA": "b" * 40,
    "GITHUB_WORKFLOW_REF": "team/iris-api/.github/workflows/release.yml@refs/tags/v1.4.0",
    "GITHUB_RUN_ID": "1",
    "GITHUB_RUN_ATTEMPT": "2",
}


def test_the_provenance_names_commit_base_and_builder() -> None:
    predicate = json.loads(run_script("provenance", "serve", f"python:3.11@sha256:{'c' * 64}", **RELEASE).stdout)
    digests = [dependency["digest"] for dependency in predicate["buildDefinition"]["resolvedDependencies"]]
    assert digests == [{"gitCommit": "b" * 40}, {"sha256": "c" * 64}]
    assert predicate["runDetails"]["builder"]["id"].endswith(RELEASE["GITHUB_WORKFLOW_REF"])


def test_the_changelog_has_a_section_for_what_is_not_released() -> None:
    assert "\n## [Unreleased]\n" in (ROOT / "CHANGELOG.md").read_text()


def test_every_promise_names_a_test_that_is_there() -> None:
    defined = [
        f"{path.relative_to(ROOT)}::{name}"
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)", path.read_text(), re.MULTILINE)
    ]
    for page, groups in PAGES.items():
        text = (ROOT / page).read_text()
        for _, promises in groups:
            for promise in promises:
                assert any(is_of(test, promise.test.partition("[")[0]) for test in defined), promise.test
                assert promise.text in text, "make docs-reliability"


def test_the_tables_of_promises_are_made_from_the_records_and_have_short_cells() -> None:
    records: Records = json.loads(RECORDS.read_text())
    for page, groups in PAGES.items():
        text = (ROOT / page).read_text()
        assert filled(text, groups, records) == text, "make docs-reliability"
        for promise in (promise for _, promises in groups for promise in promises):
            record = records.get(promise.test)
            if record is not None and record["figures"]:
                assert number_in(record["figures"], promise.number), promise.test
            cell = NONE if record is None else figure_of(record, promise.number)
            assert max(len(promise.text), len(promise.test)) <= 100
            assert len(cell) <= 100 if record is not None and record["failed"] else len(cell) <= 40


def test_a_figure_is_that_of_the_last_run_and_a_failure_is_no_figure() -> None:
    def line(name: str, **what: str) -> dict[str, str]:
        return {"test": f"tests/faults/test_x.py::test_{name}", "at": "2026-11-24T12:00:00", **what}

    def figure(name: str, *lines: dict[str, str]) -> str | None:
        record = record_of(f"faults::{name}", list(lines))
        if record is None:
            return ""
        assert record["date"] == "2026-11-24"
        return figure_of(record, Number(r"(\d+) of 3", "{} of 3"))

    good = (line("a", figure="3 of 3"), line("a", outcome="passed"))
    assert figure("a", *good) == "3 of 3"
    assert figure("a", *good, line("a", figure="2 of 3"), line("a", outcome="failed")) == "FAILED: 2 of 3"
    assert figure("b", line("b[1]", outcome="passed"), line("b[2]", outcome="passed")) == "2 of 2 tests passed"
    assert figure("b", line("b[1]", outcome="failed"), line("b[1]", outcome="passed")) == "passed"
    assert figure("c", *good) == ""


def test_of_several_figures_the_worst_is_shown_or_their_sum() -> None:
    figures = ["kept +0.50 MB, then +2.5 MB", "kept 1 MB"]
    assert number_in(figures, Number(r"\+([\d.]+) MB", "{} MB")) == "2.5 MB"
    assert number_in(figures, Number(r"\+([\d.]+) MB", "{} MB", min)) == "0.50 MB"
    assert number_in(figures, Number(r"(\d+) failed|([\d.]+) MB", "{} MB", sum)) == "4 MB"
    assert number_in(figures, Number(r"(\d+) failed", "{}")) == ""
    assert number_in(figures, None) == ""
