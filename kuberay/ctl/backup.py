"""backup and restore: copy the volumes of a namespace into one archive on this machine, and back.

A short Job beside each volume runs `python -m training backup` and `restore`; kubectl carries the bytes. This side verifies them,
too: it compares every digest before it gives an archive its name, and before it sends an archive.
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
"""Part of an error of `backup` that may not occur in another attempt."""
TERMINATED = "command terminated with exit code"
"""kubectl adds this line when the remote command failed; without this line, the connection failed."""
KEPT = "left as it is"
"""Part of the output of `restore --merge` when it did not change MLflow."""
ATTEMPTS = 3
START_TIMEOUT = 300.0
RESTART_TIMEOUT = "300s"
END_TIMEOUT = 120.0
"""Most seconds that the input of kubectl stays open: kubectl may lose the last bytes of an input that closes at once."""
PROGRESS_SECONDS = 5.0
_SIZE = re.compile(r"^\w+: \d+ files, (\d+) bytes")
_DIGEST = re.compile(r"^\w+: sha256 of the manifest ([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the archive: its claim, and the flags of `python -m training` for the path where the Job mounts it."""

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
"""The store comes last, because its pointer decides which version is served."""


def backup(cluster: Cluster, to: str, *, data: bool, secrets_to: str) -> None:
    """Write the volumes of the namespace into the archive `to` while the system runs; the default name has namespace and time.

    With `secrets_to`, the Secrets go into that file. Raises CommandError, and leaves no archive then.
    """
    path = Path(to or f"iris-api-{cluster.namespace}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.tar")
    for new in (path, *([Path(secrets_to)] if secrets_to else [])):
        _check_new(new)
    parts = [part for part in BACKUP_ORDER if (data or part is not DATA) and _has_claim(cluster, part)]
    if not parts:
        raise CommandError(f"there is nothing to back up in {cluster.namespace}: it has no claim models-pvc or mlflow-pvc")
    if data and DATA not in parts:
        raise CommandError(f"there is no claim {DATA.claim} in {cluster.namespace}: omit --data")
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

    With `merge`, volumes may hold files, and only what they lack is added. Raises CommandError.
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
                        f"the archive holds {part.name}, but there is no claim {part.claim} in {cluster.namespace}: "
                        "first deploy the variant from which the archive was made (docs/how-to/backup.md)"
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
        for part, _ in parts:  # all volumes are checked before the first change
            command = ("restore", "-", "--part", part.name, "--check", *part.flags, *flags)
            Transfer(cluster, jobs[part.name], *command).run()
        for part, summary in parts:
            transfer = Transfer(cluster, jobs[part.name], "restore", "-", "--part", part.name, *part.flags, *flags)
            output = transfer.run(send=_piece_reader(file, summary), progress=progress, label=part.name)
            for line in output.splitlines():
                progress(line)
            if part is MLFLOW_PART and KEPT not in output and cluster.get("deployment", MLFLOW) is not None:
                # The restarted MLflow reads the restored database, and gives the users of mlflow-auth the passwords of the Secrets.
                cluster.run("rollout", "restart", f"deployment/{MLFLOW}")
                cluster.run("rollout", "status", f"deployment/{MLFLOW}", f"--timeout={RESTART_TIMEOUT}")
                progress("MLflow runs with the restored database")
    version = served_version(output)
    if version and cluster.get("rayservice", RAYSERVICE) is not None:
        wait_for_version(cluster, version, progress)
        progress(f"every replica answers with version {version}")


# --- the Jobs


@contextlib.contextmanager
def _pods(cluster: Cluster, parts: Sequence[Part], progress: Progress) -> Iterator[dict[str, str]]:
    """The names of running Jobs by part, one beside each volume; the Jobs are removed at the end of the block."""
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
        """The lines that the command has written to stderr."""

    def run(self, *, send: Callable[[], Iterator[bytes]] | None = None, progress: Progress | None = None, label: str = "") -> str:
        """The command's output after it has read the bytes of `send`; raises CommandError with its last line when it fails."""
        output: list[bytes] = []
        with self._running():
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            reader = threading.Thread(target=lambda stdout: output.append(stdout.read()), args=(self._process.stdout,))
            reader.start()
            meter = Meter(progress, f"{label}: sent")
            with contextlib.suppress(BrokenPipeError):  # the command's own error says why it stopped reading
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
        """Write the command's output to `out`; raises CommandError with its last line when it fails."""
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
            raise CommandError(reason) if said != self.errors else BrokenTransfer(f"the transfer failed: {reason}")


class Meter:
    """Prints the number of transferred bytes at intervals."""

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
    """Append the section of a part to `file`; tries again after a file changed or the transfer failed."""
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
        raise BrokenTransfer(f"the transfer failed: {error}") from error
    except OSError as error:
        raise CommandError(f"the archive cannot be written: {error.strerror}") from error
    digests = [match[1] for line in transfer.errors if (match := _DIGEST.match(line))]
    if digests != [summary.manifest_sha256]:
        raise BrokenTransfer("the transfer failed: the received manifest differs from the sent one")
    file.truncate(start + summary.end)
    file.seek(start + summary.end)
    for line in transfer.errors:
        if not _DIGEST.match(line) and "%|" not in line:
            progress(_SIZE.sub(lambda match: f"{match[0].rpartition(' files')[0]} files, {int(match[1]) / 1e6:,.1f} MB", line))
    return summary


class BrokenTransfer(CommandError):
    """The received bytes differ from the sent ones, or some are missing."""


@contextlib.contextmanager
def _new_file(path: Path) -> Iterator[BinaryIO]:
    """`archive.new_file`, with CommandError in place of OSError."""
    try:
        with new_file(path) as file:
            yield file
    except OSError as error:
        raise CommandError(f"{path} cannot be written: {error.strerror}") from error


def _check_new(path: Path) -> None:
    if path.exists():
        raise CommandError(f"{path} exists already: choose another file")
    if not path.parent.is_dir():
        raise CommandError(f"the folder {path.parent} does not exist: create it, or choose another file")


def _write_secrets(cluster: Cluster, path: Path) -> None:
    """Write the Secrets of the namespace in a form that `kubectl create -f` accepts in any namespace."""
    items: list[Json] = [
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "type": secret.get("type", "Opaque"),
            "metadata": {"name": secret["metadata"]["name"], "labels": field(secret, "metadata.labels", {})},
            "data": secret.get("data", {}),
        }
        for secret in cluster.items("secrets", PART_OF)
        if not field(secret, "metadata.ownerReferences")  # its owner, an operator, creates it again
    ]
    with _new_file(path) as file:
        file.write(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}, indent=1).encode())
    echo(f"{path}: {', '.join(str(item['metadata']['name']) for item in items) or 'no Secret'}; keep this file secret")


def _print_gaps(cluster: Cluster, summaries: Sequence[Summary], *, with_secrets: bool) -> None:
    """Print what the archive does not hold."""
    parts = {summary.part for summary in summaries}
    if MODELS.name not in parts:
        echo("no volume holds a store here: the archive holds MLflow's database; models and artifacts stay in their bucket")
    if DATA.name not in parts and _has_claim(cluster, DATA):
        echo(f"the archive does not hold the tables of {DATA.claim} (ARGS=--data)")
    if not with_secrets:
        echo("the archive does not hold the Secrets, with keys and passwords (ARGS='--secrets FILE', docs/how-to/backup.md)")


def _piece_reader(file: BinaryIO, summary: Summary) -> Callable[[], Iterator[bytes]]:
    def pieces() -> Iterator[bytes]:
        file.seek(summary.start)
        left = summary.end - summary.start
        while left and (piece := file.read(min(left, PIECE_BYTES))):
            left -= len(piece)
            yield piece
        yield END

    return pieces
