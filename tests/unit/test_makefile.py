"""Flags in ARGS reach the command as they are written."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def last_command(target: str, flags: str, **variables: str) -> list[str]:
    outside = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}  # these tests may run under make
    command = ["make", "-n", target, f"ARGS={flags}", *(f"{name}={value}" for name, value in variables.items())]
    done = subprocess.run(command, cwd=ROOT, env=outside, capture_output=True, text=True, timeout=60, check=True)
    return shlex.split(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", ["Price ($)", "$HOME", "a $(b) c", "100%", "a, b"])
def test_a_name_of_a_column_is_not_read_by_make(name: str) -> None:
    assert last_command("train", f"--data t.csv --target {shlex.quote(name)}")[-2:] == ["--target", name]
    assert last_command("score", f"--keep {shlex.quote(name)}")[-2:] == ["--keep", name]


def test_the_flags_of_a_job_are_one_argument_with_their_quotes() -> None:
    flags = "--data /data/t.csv --target 'Price ($)'"
    assert last_command("k8s-train", flags)[-1] == f"--arguments={flags}"


@pytest.mark.parametrize("path", ["model.joblib", "a model's $1.joblib", "models:/Churn@champion"])
def test_a_path_is_not_read_by_make(path: str) -> None:
    command = last_command("k8s-adopt", "--target y", MODEL=path, SAMPLE=path)
    assert command[-3:] == [f"--model={path}", f"--sample={path}", "--arguments=--target y"]


def test_the_images_are_built_by_the_docker_of_the_environment(tmp_path: Path) -> None:
    """`eval $(minikube docker-env); make build`: the client of Docker gets what the first command has set."""
    record = tmp_path / "record"
    docker = tmp_path / "docker"
    docker.write_text(f'#!/bin/sh\necho "$@" >> {record}\nenv | grep -E "^(DOCKER_|MINIKUBE_)" | sort >> {record}\n')
    docker.chmod(0o755)
    minikube = {
        "DOCKER_TLS_VERIFY": "1",
        "DOCKER_HOST": "tcp://192.168.49.2:2376",
        "DOCKER_CERT_PATH": "/home/user/.minikube/certs",
        "MINIKUBE_ACTIVE_DOCKERD": "minikube",
    }
    outside = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "DOCKER_"))}
    env = {**outside, **minikube, "PATH": f"{tmp_path}:{outside['PATH']}"}
    subprocess.run(["make", "build"], cwd=ROOT, env=env, check=True, capture_output=True, timeout=60)
    lines = record.read_text().splitlines()
    assert [line for line in lines if line.startswith("build")] == [
        "build -t iris-api:latest --target serve .",
        "build -t iris-train:latest --target train .",
    ]
    for name, value in minikube.items():
        assert lines.count(f"{name}={value}") == 2
