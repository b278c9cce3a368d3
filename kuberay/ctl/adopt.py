"""adopt: carry a fitted model with its sample and code to the cluster, run one Job, and wait until replicas serve the model."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from kuberay.ctl import data, manifests, short_job
from kuberay.ctl.kube import ADOPTING_APP, ADOPTING_JOB, Cluster, CommandError, echo
from kuberay.ctl.train import finished_lines, wait_for_served
from kuberay.ctl.waiting import Progress

TIMEOUT = 1900.0
FILE_FLAGS = ("--package", "--sample")
"""Flags of `iris-api adopt` that name files; files on this machine are carried to the claim."""
WRONG_USAGE, REFUSED = 2, 3
"""Exit codes of `iris-api adopt`: the model or the sample is unusable; the gate refused the model."""
_MLFLOW = re.compile(r"(models|runs|mlflow-artifacts):|m-[0-9a-f]{32}$")
"""A model in MLflow; the Job fetches it."""
_REFUSED = re.compile(r"^refused, nothing was published: (.*)", re.MULTILINE)


def adopt(cluster: Cluster, folder: str, model: str, sample: str, flags: str) -> None:
    """Run the Job of `folder` for a model with a sample; returns when every replica serves the published version.

    `model` is a file or folder on this machine, a path below /data, or an address in MLflow. `sample` and the paths of `--package`
    in `flags` are carried to the claim, too. Raises CommandError with one sentence when the Job published no model.
    """
    if not model:
        raise CommandError('which model? make k8s-adopt MODEL=model.joblib SAMPLE=rows.csv ARGS="--target y"')
    documents = manifests.build(cluster, manifests.overlay(folder))
    arguments = carried(cluster, [model, *(["--sample", sample] if sample else []), *_split(flags)])
    data.require_claim(cluster)
    for job in manifests.of_kind(documents, "Job"):
        (container,) = job["spec"]["template"]["spec"]["containers"]
        # Kubernetes expands $(NAME) in the args of a container, and reads $$ as $.
        container["args"] = [word.replace("$", "$$") for word in arguments]
    progress, shown = Progress(), ""
    progress(f"Job {ADOPTING_JOB}")

    def show(output: str) -> None:
        nonlocal shown
        lines = finished_lines(output)
        if len(lines) > len(shown):
            echo(lines[len(shown) :].rstrip("\n"))
            shown = lines

    ended = short_job.run(cluster, documents, name=ADOPTING_JOB, app=ADOPTING_APP, timeout=TIMEOUT, show=show, waits_for_room=True)
    if ended.code:
        raise CommandError(failure(ended))
    wait_for_served(cluster, ended.output, progress)


def carried(cluster: Cluster, arguments: Sequence[str]) -> list[str]:
    """The arguments of `iris-api adopt`, the model first; paths in the claim replace files on this machine.

    Raises CommandError for a file that does not exist, and for a model or a package with the address of a table.
    """
    words = _separated(arguments)
    named = [*([] if _MLFLOW.match(words[0]) else [0]), *(at + 1 for at, word in enumerate(words[:-1]) if word in FILE_FLAGS)]
    for at in named:
        what = words[at - 1] if at else "MODEL"
        if not words[at]:
            raise CommandError(f"{what} has no value: give the path of a file")
        if "://" in words[at] and what != "--sample":
            raise CommandError(
                f"{what} {words[at]} cannot be an address of this kind: give a file on this machine, or a path below /data"
                f"{'' if at else ', or a model in MLflow (models:/NAME@ALIAS)'}"
            )
    for at, target in zip(named, data.carry_all(cluster, [words[at] for at in named]), strict=True):
        words[at] = target
    return words


def failure(ended: short_job.Ended) -> str:
    """One sentence for an adoption that published nothing: the exit code, its meaning, and the reason from the output."""
    lines = [line for line in ended.output.splitlines() if line.strip()]
    last = lines[-1].removeprefix("error: ") if lines else "no output"
    if ended.code == REFUSED and (match := _REFUSED.search(ended.output)):
        return f"the gate refused the model (exit code {REFUSED}), and nothing was published: {match.group(1)}"
    if ended.code == WRONG_USAGE:
        return f"the model cannot be adopted (exit code {WRONG_USAGE}), and nothing was published: {last}"
    if ended.code == short_job.TIMED_OUT:
        return f"the Job {ADOPTING_JOB} exceeded activeDeadlineSeconds of kuberay/adopt/job.yaml; its last output: {last}"
    return f"the adoption failed (exit code {ended.code}): {last}"


def _separated(arguments: Sequence[str]) -> list[str]:
    """The arguments, with `--package=x.py` split into two words."""
    words: list[str] = []
    for word in arguments:
        flag, equals, value = word.partition("=")
        words += [flag, value] if equals and flag in FILE_FLAGS else [word]
    return words


def _split(flags: str) -> list[str]:
    try:
        return shlex.split(flags)
    except ValueError as error:
        raise CommandError(f"ARGS cannot be split into flags ({error}): close each quote") from None
