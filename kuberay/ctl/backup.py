"""backup and restore: the volumes of a namespace in one archive on this machine, and back.

A short Job beside each volume runs `python -m training backup` and `restore`; kubectl carries the bytes. This side proves them too:
an archive gets its name after every digest in it was compared, and no archive is sent before.
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from kuberay.ctl import manifests
from kuberay.ctl.faults import pod_faults
from kuberay.ctl.kube import KUBERAY, MLFLOW, PART_OF, RAYSERVICE, Cluster, CommandError, Json, echo, field, is_ready
from kuberay.ctl.readiness import wait_for_version
from kuberay.ctl.train import served_version
from kuberay.ctl.waiting import Progress, poll
from serve_app.artifacts.archive import END, PIECE_BYTES, Summary, new_file, verify
from serve_app.errors import IrisApiError

PROGRAM = ("python", "-m", "training")
CHANGED = "changed while it was copied"
"""In the error of `backup` that another attempt may not meet."""
TERMINATED = "command terminated with exit code"
"""What kubectl adds to the errors of a command that failed by itself; without it, the connection failed."""
KEPT = "left as it is"
"""In the output of `restore --merge` for an MLflow that it did not change."""
ATTEMPTS = 3
START_TIMEOUT = 300.0
RESTART_TIMEOUT = "300s"
END_TIMEOUT = 120.0
"""The input of kubectl stays open so long at most: kubectl may lose the last bytes of an input that ends at once."""
PROGRESS_SECONDS = 5.0
_SIZE = re.compile(r"^\w+: \d+ files, (\d+) bytes")
_DIGEST = re.compile(r"^\w+: sha256 of the manifest ([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the archive: its claim, and the flags that tell `python -m training` where the Job mounts it."""

    name: str
    claim: str
    flags: tuple[str, ...] = ()

    @property
    def job(self) -> Path:
        """The manifest of the Job."""
        return KUBERAY / "backup" / f"{self.name}-job.yaml"


MODELS = Part("models", "models-pvc")
MLFLOW_PART = Part("mlflow", "mlflow-pvc", ("--mlflow-dir", "/data"))
DATA = Part("data", "data-pvc", ("--data-dir", "/data"))
BACKUP_ORDER = (MODELS, MLFLOW_PART, DATA)
RESTORE_ORDER = (DATA, MLFLOW_PART, MODELS)
"""The pointer of the store, which decides what is served, comes last."""


def backup(cluster: Cluster, to: str, *, data: bool, secrets_to: str) -> None:
    """Write the volumes of the namespace into the archive `to` (by default a name with namespace and time), while the system runs.

    With `secrets_to`, the Secrets go into that file. Raises CommandError; there is no archive then.
    """
    path = Path(to or f"iris-api-{cluster.namespace}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.tar")
    for new in (path, *([Path(secrets_to)] if secrets_to else [])):
        _check_new(new)
    parts = [part for part in BACKUP_ORDER if (data or part is not DATA) and _has_claim(cluster, part)]
    if not parts:
        raise CommandError(f"there is nothing to back up in {cluster.namespace}: it has no claim models-pvc or mlflow-pvc")
    if data and DATA not in parts:
        raise CommandError(f"there is no claim {DATA.claim} in {cluster.namespace}: leave out --data")
    progress = Progress()
    with _pods(cluster, parts, progress) as jobs, _new_file(path) as file:
        summaries = [_receive(cluster, jobs[part.name], part, file, progress) for part in parts]
        file.write(END)
        size = file.tell()
    progress(f"{path}: {size / 1e6:,.1f} MB, every digest verified")
    if secrets_to:
        _write_secrets(cluster, Path(secrets_to))
    _print_gaps(cluster, summaries, with_secrets=bool(secrets_to))


def restore(cluster: Cluster, archive: str, *, merge: bool) -> None:
    """Restore an archive into the volumes of the namespace; returns when every replica serves the version that the store points to.

    With `merge`, what is missing is added to volumes that are not empty. Raises CommandError.
    """
    progress = Progress()
    try:
        with open(archive, "rb") as file:
            summaries = {summary.part: summary for summary in verify(file)}
            progress(f"{archive}: {sum(one.files for one in summaries.values())} files, every digest verified")
            parts = [part for part in RESTORE_ORDER if part.name in summaries]
            for part in parts:
                if not _has_claim(cluster, part):
                    raise CommandError(
                        f"the archive holds {part.name} and there is no claim {part.claim} in {cluster.namespace}: "
                        "deploy the variant that the archive was made of first (docs/how-to/backup.md)"
                    )
            _restore(cluster, file, [(part, summaries[part.name]) for part in parts], progress, merge=merge)
    except IrisApiError as error:
        raise CommandError(f"{archive}: {error}") from error
    except OSError as error:
        raise CommandError(f"{archive} cannot be read: {error.strerror}") from error


def _restore(cluster: Cluster, file: BinaryIO, parts: Sequence[tuple[Part, Summary]], progress: Progress, *, merge: bool) -> None:
    flags = ("--merge",) if merge else ()
    output = ""
    with _pods(cluster, [part for part, _ in parts], progress) as jobs:
        for part, _ in parts:  # every volume is looked at before the first one is changed
            command = ("restore", "-", "--part", part.name, "--check", *part.flags, *flags)
            Transfer(cluster, jobs[part.name], *command).run()
        for part, summary in parts:
            transfer = Transfer(cluster, jobs[part.name], "restore", "-", "--part", part.name, *part.flags, *flags)
            output = transfer.run(send=_piece_reader(file, summary), progress=progress, label=part.name)
            for line in output.splitlines():
                progress(line)
            if part is MLFLOW_PART and KEPT not in output and cluster.get("deployment", MLFLOW) is not None:
                # It reads its database anew, and the users of mlflow-auth get the passwords of the Secrets here.
                cluster.run("rollout", "restart", f"deployment/{MLFLOW}")
                cluster.run("rollout", "status", f"deployment/{MLFLOW}", f"--timeout={RESTART_TIMEOUT}")
                progress("MLflow runs on the restored database")
    version = served_version(output)
    if version and cluster.get("rayservice", RAYSERVICE) is not None:
        wait_for_version(cluster, version, progress)
        progress(f"every replica answers with version {version}")


# --- the Jobs


@contextlib.contextmanager
def _pods(cluster: Cluster, parts: Sequence[Part], progress: Progress) -> Iterator[dict[str, str]]:
    """The names of running Jobs, one beside each volume, by part; they are removed afterwards."""
    suffix = secrets.token_hex(3)
    documents: list[Json] = []
    for part in parts:
        for job in manifests.of_kind(manifests.build(cluster, part.job), "Job"):
            job["metadata"]["name"] += f"-{suffix}"
            documents.append(job)
    names = {part.name: str(job["metadata"]["name"]) for part, job in zip(parts, documents, strict=True)}
    try:
        cluster.run("create", "-f", "-", text=manifests.dump(documents))
        for name in names.values():
            _wait_for_pod(cluster, name, progress)
        yield names
    finally:
        cluster.try_run("delete", "job", *names.values(), "--ignore-not-found", "--wait=false")


def _wait_for_pod(cluster: Cluster, job: str, progress: Progress) -> None:
    selector = f"job-name={job}"

    def ready(_: Progress) -> bool | None:
        return any(map(is_ready, cluster.pods(selector))) or None

    poll(
        ready,
        timeout=START_TIMEOUT,
        failure=f"the pod of the Job {job} does not run",
        interval=0.5,
        faults=lambda: pod_faults(cluster, selector),
        progress=progress,
    )


def _has_claim(cluster: Cluster, part: Part) -> bool:
    return cluster.get("persistentvolumeclaim", part.claim) is not None


class Transfer:
    """One run of `python -m training` in a Job's pod, with a stream of bytes from it or to it."""

    def __init__(self, cluster: Cluster, job: str, *arguments: str) -> None:
        stdin = ("-i",) if arguments[0] == "restore" else ()
        self._process = cluster.popen_bytes("exec", *stdin, f"job/{job}", "--", *PROGRAM, *arguments)
        self._name = arguments[0]
        self.errors: list[str] = []
        """The lines that it wrote to stderr so far."""

    def run(self, *, send: Callable[[], Iterator[bytes]] | None = None, progress: Progress | None = None, label: str = "") -> str:
        """Its output after it has read the bytes to `send`; raises CommandError with its last line when it fails."""
        output: list[bytes] = []
        with self._running():
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            reader = threading.Thread(target=lambda stdout: output.append(stdout.read()), args=(self._process.stdout,))
            reader.start()
            meter = Meter(progress, f"{label}: sent")
            with contextlib.suppress(BrokenPipeError):  # its own error says why it stopped reading
                for piece in send() if send else ():
                    self._process.stdin.write(piece)
                    meter.add(len(piece))
                self._process.stdin.flush()
            if send is not None:
                reader.join(END_TIMEOUT)
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
            reader.join()
        return output[0].decode(errors="replace")

    def receive(self, out: BinaryIO, progress: Progress, label: str) -> None:
        """Write its output to `out`; raises CommandError with its last line when it fails."""
        with self._running():
            assert self._process.stdout is not None
            meter = Meter(progress, f"{label}: received", self._expected)
            while piece := self._process.stdout.read(PIECE_BYTES):
                out.write(piece)
                meter.add(len(piece))

    def _expected(self) -> int | None:
        return next((int(match[1]) for line in list(self.errors) if (match := _SIZE.match(line))), None)

    @contextlib.contextmanager
    def _running(self) -> Iterator[None]:
        def collect() -> None:
            assert self._process.stderr is not None
            for line in self._process.stderr:
                text = line.decode(errors="replace").rpartition("\r")[2].strip()
                if text:
                    self.errors.append(text)

        collector = threading.Thread(target=collect)
        collector.start()
        with self._process:  # closes its pipes
            try:
                yield
            except BaseException:
                self._process.kill()
                raise
            finally:
                code = self._process.wait()
                collector.join()
        if code:
            said = [line for line in self.errors if not line.startswith(TERMINATED)]
            reason = said[-1].removeprefix("error: ") if said else f"the {self._name} in the cluster failed"
            raise CommandError(reason) if said != self.errors else BrokenTransfer(f"the transfer broke: {reason}")


class Meter:
    """Prints how many bytes have passed, now and then."""

    def __init__(self, progress: Progress | None, text: str, expected: Callable[[], int | None] = lambda: None) -> None:
        self._progress = progress
        self._text = text
        self._expected = expected
        self._bytes = 0
        self._next = time.monotonic() + PROGRESS_SECONDS

    def add(self, count: int) -> None:
        """Count bytes."""
        self._bytes += count
        if self._progress is not None and time.monotonic() >= self._next:
            expected = self._expected()
            of = f" of {expected / 1e6:,.1f}" if expected else ""
            self._progress(f"{self._text} {self._bytes / 1e6:,.1f}{of} MB")
            self._next = time.monotonic() + PROGRESS_SECONDS


# --- backup


def _receive(cluster: Cluster, job: str, part: Part, file: BinaryIO, progress: Progress) -> Summary:
    """Append the section of a part to `file`; what changes meanwhile, or breaks on the way, is tried again."""
    start = file.tell()
    for attempt in range(1, ATTEMPTS + 1):
        file.seek(start)
        file.truncate()
        try:
            return _receive_once(cluster, job, part, file, progress)
        except CommandError as error:
            if attempt == ATTEMPTS or not (isinstance(error, BrokenTransfer) or CHANGED in str(error)):
                raise
            progress(f"{part.name}: {error}; attempt {attempt + 1} of {ATTEMPTS}")
    raise AssertionError


def _receive_once(cluster: Cluster, job: str, part: Part, file: BinaryIO, progress: Progress) -> Summary:
    start = file.tell()
    transfer = Transfer(cluster, job, "backup", "-", "--part", part.name, *part.flags)
    try:
        transfer.receive(file, progress, part.name)
        file.flush()
        file.seek(start)
        (summary,) = verify(file)
    except IrisApiError as error:
        raise BrokenTransfer(f"the transfer broke: {error}") from error
    except OSError as error:
        raise CommandError(f"the archive cannot be written: {error.strerror}") from error
    digests = [match[1] for line in transfer.errors if (match := _DIGEST.match(line))]
    if digests != [summary.manifest_sha256]:
        raise BrokenTransfer("the transfer broke: the manifest is not the one that was sent")
    file.truncate(start + summary.end)
    file.seek(start + summary.end)
    for line in transfer.errors:
        if not _DIGEST.match(line) and "%|" not in line:
            progress(_SIZE.sub(lambda match: f"{match[0].rpartition(' files')[0]} files, {int(match[1]) / 1e6:,.1f} MB", line))
    return summary


class BrokenTransfer(CommandError):
    """The bytes that arrived are not the bytes that were sent."""


@contextlib.contextmanager
def _new_file(path: Path) -> Iterator[BinaryIO]:
    """`archive.new_file`, with errors of the disk in one sentence."""
    try:
        with new_file(path) as file:
            yield file
    except OSError as error:
        raise CommandError(f"{path} cannot be written: {error.strerror}") from error


def _check_new(path: Path) -> None:
    if path.exists():
        raise CommandError(f"{path} is there already: name another file")
    if not path.parent.is_dir():
        raise CommandError(f"there is no folder {path.parent}: create it, or name another file")


def _write_secrets(cluster: Cluster, path: Path) -> None:
    """The Secrets of the namespace in a form that `kubectl create -f` takes in any namespace."""
    items: list[Json] = [
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "type": secret.get("type", "Opaque"),
            "metadata": {"name": secret["metadata"]["name"], "labels": field(secret, "metadata.labels", {})},
            "data": secret.get("data", {}),
        }
        for secret in cluster.items("secrets", PART_OF)
        if not field(secret, "metadata.ownerReferences")  # an operator makes it again
    ]
    with _new_file(path) as file:
        file.write(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}, indent=1).encode())
    echo(f"{path}: {', '.join(str(item['metadata']['name']) for item in items) or 'no Secret'}; keep this file secret")


def _print_gaps(cluster: Cluster, summaries: Sequence[Summary], *, with_secrets: bool) -> None:
    """Say what is not in the archive."""
    parts = {summary.part for summary in summaries}
    if MODELS.name not in parts:
        echo("there is no store on a volume here: the archive holds MLflow's database; models and artifacts stay in their bucket")
    if DATA.name not in parts and _has_claim(cluster, DATA):
        echo(f"not in the archive: the tables of {DATA.claim} (ARGS=--data)")
    if not with_secrets:
        echo("not in the archive: the Secrets, with keys and passwords (ARGS='--secrets FILE', docs/how-to/backup.md)")


def _piece_reader(file: BinaryIO, summary: Summary) -> Callable[[], Iterator[bytes]]:
    def pieces() -> Iterator[bytes]:
        file.seek(summary.start)
        left = summary.end - summary.start
        while left and (piece := file.read(min(left, PIECE_BYTES))):
            left -= len(piece)
            yield piece
        yield END

    return pieces
