"""data: copy tables between this machine and the claim data-pvc through the pod of a short Job; no byte is sent twice."""

from __future__ import annotations

import contextlib
import hashlib
import re
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from kuberay.ctl import manifests
from kuberay.ctl.faults import Fault, pod_faults
from kuberay.ctl.kube import KUBERAY, Cluster, CommandError, echo, field, is_ready
from kuberay.ctl.waiting import Progress, poll

CLAIM = "data-pvc"
JOB = "iris-data"
FOLDER = KUBERAY / "data"
ROOT = "/data"
"""Where every pod mounts the claim."""
INPUT = f"{ROOT}/in"
TIMEOUT = 180.0
ATTEMPTS = 5
"""Most connections for one file; each continues where the one before ended."""
CHUNK = 1 << 20
MEGABYTE = 1_000_000
RESERVE = 16 << 20
"""Bytes of the volume that must stay free."""

_STATE = """
size() { stat -c %s "$1" 2>/dev/null || echo -1; }
mkdir -p "$(dirname "$1")"
echo "$(size "$1") $(cat "$2".*.part 2>/dev/null | wc -c) $(stat -f -c '%a %S' /data)"
"""
"""Prints the size of the file $1 and of its unfinished copies $2.*.part, the free blocks of the volume and their size."""
_BEGIN = 'for part in "$1".*.part; do [ "$part" = "$2" ] || rm -f "$part"; done; touch "$2"; stat -c %s "$2"'
_WRITE = """
import os, sys
path, start, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
with open(path, "r+b", buffering=0) as part:
    part.seek(start)
    while count and (chunk := os.read(0, min(count, 1 << 20))):
        part.write(chunk)
        count -= len(chunk)
"""
"""Ends after count bytes and does not wait for the end of kubectl's input, because kubectl may lose bytes before that end."""
_DIGEST = 'sha256sum < "$1" | cut -d " " -f 1'
_FINISH = 'sync "$1" && mv -f "$1" "$2"'


def carry(cluster: Cluster, source: str) -> str:
    """Return the value of `--data` for DATA=`source`; carry a file or folder of this machine to the claim first.

    An address with a scheme stays as it is, and so does a path below /data that this machine does not have. Raises CommandError.
    """
    return carry_all(cluster, [source])[0]


def carry_all(cluster: Cluster, sources: Sequence[str]) -> list[str]:
    """Return what `carry` returns for each source; one pod takes all of them. Carries nothing unless every source exists."""
    local = {source: Path(source).expanduser() for source in sources if _is_local(source)}
    missing = [source for source, path in local.items() if not path.exists()]
    if missing:
        raise CommandError(
            f"{', '.join(missing)} does not exist: give a file or folder on this machine, an address like s3://…, "
            "or a path below /data"
        )
    targets = {source: f"{INPUT}/{path.resolve().name}" for source, path in local.items()}
    _require_different(local, targets)
    files = {
        source: {targets[source]: path} if path.is_file() else folder_files(path, targets[source]) for source, path in local.items()
    }
    if files:
        progress = Progress()
        with pod(cluster, progress) as files_pod:
            for source, parts in files.items():
                if local[source].is_dir():
                    _require_no_others(files_pod, targets[source], parts)
                for target, file in parts.items():
                    files_pod.put(file, target, progress)
    return [targets.get(source, source) for source in sources]


def _is_local(source: str) -> bool:
    """Whether the source is a file or folder of this machine, and not an address or a path that only the claim has."""
    return "://" not in source and (not source.startswith(f"{ROOT}/") or Path(source).exists())


def _require_different(local: Mapping[str, Path], targets: Mapping[str, str]) -> None:
    """Raise CommandError when two files of this machine would get the same path in the claim."""
    owners: dict[str, str] = {}
    for source, path in local.items():
        other = owners.setdefault(targets[source], source)
        if path.resolve() != local[other].resolve():
            raise CommandError(f"{other} and {source} would both be {targets[source]} in the claim: rename one")


def folder_files(folder: Path, target: str) -> dict[str, Path]:
    """The files of a folder by their path in the claim, without hidden and compiled files; raises CommandError without files."""
    files = {
        f"{target}/{file.relative_to(folder).as_posix()}": file
        for file in sorted(folder.rglob("*"))
        if file.is_file() and not any(part.startswith(".") or part == "__pycache__" for part in file.relative_to(folder).parts)
    }
    if not files:
        raise CommandError(f"{folder} holds no file: put the files into it")
    return files


def list_files(cluster: Cluster) -> None:
    """Print the files in the claim with their sizes, and the free space."""
    with pod(cluster, Progress()) as files_pod:
        for line in files_pod.run(
            'cd /data && find in out -type f ! -name "*.part" -printf "%s %TY-%Tm-%Td %TH:%TM %p\\n" | sort -k 4'
        ).splitlines():
            size, day, clock, name = line.split(" ", 3)
            echo(f"{int(size):>15,}  {day} {clock}  {name}")
        blocks, size = files_pod.run("stat -f -c '%a %S' /data").split()
        echo(f"{int(blocks) * int(size) / MEGABYTE:,.0f} MB are free")


def get_files(cluster: Cluster, name: str, destination: str) -> None:
    """Copy a file or folder of the claim into a folder of this machine and compare the digests; raises CommandError."""
    name = claim_path(name)
    target = Path(destination)
    if (target / PurePosixPath(name).name).exists():
        raise CommandError(
            f'{target / PurePosixPath(name).name} exists already: choose another folder, as in ARGS="get {name} elsewhere"'
        )
    with pod(cluster, Progress()) as files_pod:
        digests = files_pod.run('cd /data && [ -e "$1" ] && find "$1" -type f -exec sha256sum {} + || true', name)
        if not digests.strip():
            raise CommandError(f"/data/{name} is no file of the claim {CLAIM}: `make k8s-data` lists them")
        target.mkdir(parents=True, exist_ok=True)
        files_pod.extract(name, target)
    parent = PurePosixPath(name).parent
    count = 0
    for line in digests.splitlines():
        digest, _, member = line.partition("  ")
        file = target / PurePosixPath(member).relative_to(parent)
        if not file.is_file() or file_digest(file) != digest:
            raise CommandError(f"{file} differs from /data/{member}: remove it and run the command again")
        count += 1
    echo(f"{count} file(s) copied to {target / PurePosixPath(name).name}; their digests are those in the claim")


def remove_files(cluster: Cluster, name: str) -> None:
    """Remove a file or folder from the claim; raises CommandError when it does not exist."""
    name = claim_path(name)
    with pod(cluster, Progress()) as files_pod:
        if not files_pod.run('cd /data && [ -e "$1" ] && rm -r "$1" && echo gone || true', name):
            raise CommandError(f"/data/{name} is no file of the claim {CLAIM}: `make k8s-data` lists them")
    echo(f"/data/{name} is removed")


def claim_path(name: str) -> str:
    """The path relative to /data: `in/t.csv` and `/data/in/t.csv` are the same; raises CommandError for other folders."""
    path = PurePosixPath(name.removeprefix(f"{ROOT}/"))
    if ".." in path.parts or len(path.parts) < 2 or path.parts[0] not in ("in", "out"):
        raise CommandError(f"{name} is not a path in the claim {CLAIM}: give one like in/table.csv or out/table")
    return path.as_posix()


def require_claim(cluster: Cluster) -> None:
    """Create the claim where an installation of an earlier version lacks it; an existing claim stays as it is."""
    if cluster.get("persistentvolumeclaim", CLAIM) is None:
        cluster.run("apply", "-f", "-", text=manifests.dump(manifests.build(cluster, FOLDER)))


class State(NamedTuple):
    """Sizes of a file in the claim (-1: no file) and of its unfinished copies; free bytes of the volume."""

    size: int
    unfinished: int
    free: int


@dataclass(frozen=True, slots=True)
class FilesPod:
    """The pod that mounts the claim at /data."""

    cluster: Cluster
    name: str

    def run(self, script: str, *arguments: str) -> str:
        """The output of a shell script with arguments; raises CommandError."""
        return self.cluster.run("exec", self.name, "--", "sh", "-c", script, "sh", *arguments)

    def put(self, file: Path, target: str, progress: Progress) -> None:
        """Carry a file to the path `target` unless it is there; raises CommandError when space is short or connections fail."""
        size = file.stat().st_size
        hidden = str(PurePosixPath(target).with_name(f".{PurePosixPath(target).name}"))
        state = self._state(target, hidden)
        if size - state.unfinished + RESERVE > state.free and size != state.size:
            raise CommandError(
                f"{file} has {_megabytes(size)}, but the claim {CLAIM} has room for {_megabytes(max(state.free - RESERVE, 0))}: "
                'remove tables (make k8s-data ARGS="remove in/…") or enlarge the claim'
            )
        digest = file_digest(file)
        if size == state.size and self.run(_DIGEST, target).strip() == digest:
            progress(f"{file.name} is in the claim already (sha256 {digest[:12]})")
            return
        part = f"{hidden}.{digest[:16]}.part"
        start = time.monotonic()
        done = begun = min(int(self.run(_BEGIN, hidden, part)), size)
        if begun:
            progress(f"{file.name}: {_megabytes(begun)} of {_megabytes(size)} are in the claim, the rest follows")
        for attempt in range(ATTEMPTS):
            error = self._send(file, part, done, size, progress)
            done = min(int(self.run(_BEGIN, hidden, part)), size)
            if done == size:
                break
            progress(
                f"{file.name}: the connection ended after {_megabytes(done)} ({error or 'no reason given'}), attempt {attempt + 2}"
            )
        else:
            raise CommandError(f"{file} is in the claim up to {_megabytes(done)}: run the command again to continue there")
        if self.run(_DIGEST, part).strip() != digest:
            self.run('rm -f "$1"', part)
            raise CommandError(f"{file} has another digest in the claim: it changed during the transfer; run the command again")
        self.run(_FINISH, part, target)
        replaced = " (in place of another file of that name)" if state.size >= 0 else ""
        seconds = time.monotonic() - start
        progress(f"{file.name}: {_megabytes(size - begun)} in {seconds:.1f} s, sha256 {digest[:12]} is the same there{replaced}")

    def extract(self, name: str, folder: Path) -> None:
        """Copy a file or folder of the claim into `folder`; raises CommandError when the copy is incomplete."""
        path = PurePosixPath(name)
        command = self.cluster.command("exec", self.name, "--", "tar", "-C", f"{ROOT}/{path.parent}", "-cf", "-", path.name)
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:  # noqa: S603
            try:
                with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                    archive.extractall(folder, filter="data")
            except (tarfile.TarError, EOFError) as error:
                raise CommandError(
                    f"the connection ended before {name} was complete ({error}): remove it on this machine and try again"
                ) from None

    def _state(self, target: str, hidden: str) -> State:
        size, unfinished, blocks, block_size = map(int, self.run(_STATE, target, hidden).split())
        return State(size, unfinished, blocks * block_size)

    def _send(self, file: Path, part: str, start: int, size: int, progress: Progress) -> str:
        """Write the file from byte `start` on into `part`; returns kubectl's last line of errors."""
        command = self.cluster.command("exec", "-i", self.name, "--", "python", "-c", _WRITE, part, str(start), str(size - start))
        with tempfile.TemporaryFile() as errors, file.open("rb") as stream:
            stream.seek(start)
            with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=errors) as process:  # noqa: S603
                assert process.stdin is not None
                with contextlib.suppress(BrokenPipeError):
                    _pump(stream, process.stdin, start, size, lambda done: progress(_share(file, done, size)))
                    process.wait()
            errors.seek(0)
            lines = errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""


def _pump(source: IO[bytes], target: IO[bytes], start: int, size: int, report: Callable[[int], None]) -> None:
    """Copy up to byte `size`, and report each tenth of it."""
    done, reported = start, start
    while done < size and (chunk := source.read(min(CHUNK, size - done))):
        target.write(chunk)
        done += len(chunk)
        if done - reported >= max(size / 10, 64 * CHUNK):
            report(done)
            reported = done
    target.flush()


def _share(file: Path, done: int, size: int) -> str:
    return f"{file.name}: {_megabytes(done)} of {_megabytes(size)} ({done / size:.0%})"


@contextlib.contextmanager
def pod(cluster: Cluster, progress: Progress) -> Iterator[FilesPod]:
    """The pod of the Job iris-data. A Job that the user started stays; a Job that this function started is removed."""
    name = _ready_pod(cluster)
    if name is not None:
        yield FilesPod(cluster, name)
        return
    require_claim(cluster)
    cluster.run("delete", "job", JOB, "--ignore-not-found", "--wait", "--cascade=foreground")
    cluster.run("apply", "-f", "-", text=manifests.dump(manifests.build(cluster, FOLDER / "files-job.yaml")))
    try:
        yield FilesPod(
            cluster,
            poll(
                lambda _: _ready_pod(cluster),
                timeout=TIMEOUT,
                failure=f"the pod of the Job {JOB} is not ready",
                interval=0.5,
                faults=lambda: _faults(cluster),
                progress=progress,
            ),
        )
    finally:
        # Removed at once, because a ReadWriteOnce volume would keep the training on the node of this pod.
        cluster.try_run("delete", "job", JOB, "--ignore-not-found", "--wait=false")
        cluster.try_run("delete", "pods", "-l", f"app={JOB}", "--grace-period=1", "--wait=false")


def _ready_pod(cluster: Cluster) -> str | None:
    for document in cluster.pods(f"app={JOB}"):
        if field(document, "metadata.deletionTimestamp") is None and is_ready(document):
            return str(document["metadata"]["name"])
    return None


def _faults(cluster: Cluster) -> list[Fault]:
    return [replace(fault, final=True) for fault in pod_faults(cluster, f"app={JOB}")]


def _require_no_others(files_pod: FilesPod, target: str, files: dict[str, Path]) -> None:
    """Raise CommandError when the folder in the claim holds files that the local folder lacks: a training would read them, too."""
    present = files_pod.run('[ ! -d "$1" ] || find "$1" -type f ! -name ".*.part"', target).splitlines()
    others = sorted(set(present) - set(files))
    if others:
        name = others[0].removeprefix(f"{ROOT}/")
        raise CommandError(
            f"{target} holds {len(others)} file(s) that the folder on this machine lacks, such as {name}: "
            f'remove them (make k8s-data ARGS="remove {name}"), or carry the folder under another name'
        )


def file_digest(file: Path) -> str:
    """The SHA-256 of a file on this machine."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def result_name(source: str) -> str:
    """The name of the results folder for a table: the name of the table, with `-` for special characters."""
    stem = PurePosixPath(source.rstrip("/")).name.partition(".")[0]
    return re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-") or "table"


def _megabytes(size: int) -> str:
    return f"{size / MEGABYTE:,.1f} MB"
