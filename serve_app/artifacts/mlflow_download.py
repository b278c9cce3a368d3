"""Downloads from MLflow, in a separate process with limits on the number of bytes and on the time.

MLflow's clients write all bytes that the server sends. The operating system limits the size of the file that the process writes,
and the caller kills the process when its time is over. The order names the file to write; the process uses no names from the server
as paths.

    python -m serve_app.artifacts.mlflow_download       reads orders from standard input, one JSON object in each line
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from serve_app.artifacts.mlflow_version import UNKNOWN
from serve_app.artifacts.regular_file import UnfitFile, read_regular
from serve_app.errors import BundleRefused

SECONDS = 300.0
"""Time limit for all downloads of one model together."""
ANSWER_BYTES = 4096


class MissingArtifact(BundleRefused):
    """MLflow answered that it does not hold the file."""

    def __init__(self, artifact: str) -> None:
        super().__init__("manifest", f"MLflow does not hold its file {artifact}")


class Download:
    """A process that downloads files below one address of MLflow (`runs:/ID` or `models:/NAME/VERSION`), until `close`."""

    def __init__(self, tracking_uri: str, root: str, folder: Path, *, seconds: float = SECONDS) -> None:
        self._folder = folder
        self._deadline = time.monotonic() + seconds
        self._process = subprocess.Popen(
            [sys.executable, "-m", "serve_app.artifacts.mlflow_download"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_environment(),
        )
        self._send({"tracking_uri": tracking_uri, "root": root})

    def fetch(self, artifact: str, limit: int) -> bytes:
        """The bytes of one artifact.

        Raises BundleRefused `manifest` when it has more than `limit` bytes, MissingArtifact when MLflow does not hold it, and
        BundleRefused `unreadable` when the download fails.
        """
        path = self._folder / "download"
        path.unlink(missing_ok=True)
        self._send({"artifact": artifact, "path": str(path), "limit": limit})
        answer = self._answer()
        error = answer.get("error")
        if answer.get("missing"):
            raise MissingArtifact(artifact)
        try:
            if error is None:
                return read_regular(path, limit)
            if path.stat().st_size >= limit:
                raise BundleRefused("manifest", f"{artifact} in MLflow has more than {limit} bytes")
        except UnfitFile:
            raise BundleRefused("manifest", f"{artifact} in MLflow is not a file of at most {limit} bytes") from None
        except OSError as failure:
            error = error or type(failure).__name__
        raise BundleRefused("unreadable", f"MLflow did not return {artifact} ({error})", final=False)

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _send(self, order: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # `_answer` reports a process that ended
            self._process.stdin.write(orjson.dumps(order) + b"\n")
            self._process.stdin.flush()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, self._deadline - time.monotonic()))
        if not ready:
            self._process.kill()
            return {"error": "TimeoutError"}
        try:
            answer: dict[str, Any] = orjson.loads(self._process.stdout.readline(ANSWER_BYTES))
        except orjson.JSONDecodeError:
            return {"error": "the process ended"}
        return answer


def _environment() -> dict[str, str]:
    """The environment of this process, which has the settings of MLflow's client, without the key of the API."""
    others = {name: value for name, value in os.environ.items() if name != "API_KEY"}
    return {**others, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}


@contextlib.contextmanager
def downloading(tracking_uri: str, root: str) -> Iterator[Download]:
    """A download process with a temporary folder; the end of the block ends both."""
    with tempfile.TemporaryDirectory(prefix="iris-api-") as folder:
        download = Download(tracking_uri, root, Path(folder))
        try:
            yield download
        finally:
            download.close()


def main() -> None:
    """Execute the orders from standard input, and answer each with one line: `{}`, or the name of the error.

    `missing` is true in the answer when MLflow does not hold the artifact.
    """
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # keeps the output of libraries out of the answers
    address = orjson.loads(sys.stdin.buffer.readline())
    for line in sys.stdin.buffer:
        order = orjson.loads(line)
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        answer: dict[str, Any] = {}
        repositories: list[tuple[Any, str]] = []
        try:
            repositories = list(_repositories(address["tracking_uri"], address["root"], order["artifact"]))
            resource.setrlimit(resource.RLIMIT_FSIZE, (order["limit"], hard))
            _download(repositories, order["path"])
        except Exception as error:  # the caller decides about every error
            is_partial = os.path.exists(order["path"]) and os.path.getsize(order["path"]) > 0
            answer = {"error": type(error).__name__, "missing": not is_partial and _is_missing(error, repositories)}
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        answers.write(orjson.dumps(answer) + b"\n")
        answers.flush()


def _repositories(tracking_uri: str, root: str, artifact: str) -> Iterator[tuple[Any, str]]:
    """Places that may hold the artifact, and its path there: below the address; for a run, also below its logged model."""
    import mlflow
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    mlflow.set_tracking_uri(tracking_uri)
    yield get_artifact_repository(root), artifact
    scheme, _, run_id = root.partition(":/")
    if scheme != "runs":
        return
    name, _, rest = artifact.partition("/")
    client = mlflow.MlflowClient(tracking_uri=tracking_uri)
    experiment = client.get_run(run_id).info.experiment_id
    for model in client.search_logged_models(experiment_ids=[experiment], filter_string=f"name = '{name}'"):
        if model.source_run_id == run_id:
            yield get_artifact_repository(f"models:/{model.model_id}"), rest


def _is_missing(error: Exception, repositories: list[tuple[Any, str]]) -> bool:
    """Whether MLflow does not hold the file: it does not know the address, or lists the folder without the file."""
    if not repositories:
        return getattr(error, "error_code", None) in UNKNOWN
    try:
        return not any(_lists(repository, artifact) for repository, artifact in repositories)
    except Exception as failure:
        return getattr(failure, "error_code", None) in UNKNOWN


def _lists(repository: Any, artifact: str) -> bool:
    folder = os.path.dirname(artifact)
    return any(os.path.basename(item.path) == os.path.basename(artifact) for item in repository.list_artifacts(folder or None))


def _download(repositories: list[tuple[Any, str]], path: str) -> None:
    """Write the artifact to `path` from the first place that has it; raises the error of the last place."""
    for number, (repository, artifact) in enumerate(repositories, 1):
        try:
            repository._download_file(artifact, path)  # noqa: SLF001, MLflow's plug-ins implement it: it takes a path of ours
        except Exception:
            if number == len(repositories) or (os.path.exists(path) and os.path.getsize(path)):
                raise
        else:
            return


if __name__ == "__main__":
    main()
