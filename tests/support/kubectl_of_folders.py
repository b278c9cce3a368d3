"""A program in the place of kubectl: claims are folders, and `exec` runs its command on this machine beside them.

    kubectl_of_folders.py ROOT [kubectl's arguments]

ROOT/<claim>/ is a claim. A line in ROOT/faults, such as `cut` or `flip`, breaks the next transfer of bytes and is used up.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

READY = {"metadata": {"name": "pod"}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}}


def main(root: Path, arguments: list[str]) -> int:
    with open(root / "calls", "a") as calls:
        calls.write(" ".join(arguments) + "\n")
    if arguments[:1] == ["-n"]:
        arguments = arguments[2:]
    match arguments:
        case ["get", "persistentvolumeclaim", claim, *_] if (root / claim).is_dir():
            print(json.dumps({"metadata": {"name": claim}}))
        case ["get", "pods", *_]:
            print(json.dumps({"items": [READY]}))
        case ["get", "secrets", *_]:
            print((root / "secrets.json").read_text())
        case ["exec", *rest]:
            job, command = rest[rest.index("--") - 1], rest[rest.index("--") + 1 :]
            return execute(root, job, command)
        case _:
            pass
    return 0


def execute(root: Path, job: str, command: list[str]) -> int:
    """Run the command of a Job's pod as kubectl does, with the fault of the day."""
    claim = root / f"{job.removeprefix('job/iris-backup-').split('-')[0]}-pvc"
    words = [str(claim) if word == "/data" else word for word in command[3:]]
    os.environ["MODEL_DIR"] = str(claim)
    code, output = run(words)
    fault = next_fault(root) if words[:2] == ["backup", "-"] else ""
    if fault == "cut":
        output = output[: len(output) // 2]
    if fault == "flip":
        output = output[:3000] + bytes([output[3000] ^ 1]) + output[3001:]
    sys.stdout.buffer.write(output)
    if fault == "cut":
        sys.stderr.write("error: unexpected EOF\n")
        return 1
    if code:
        sys.stderr.write(f"command terminated with exit code {code}\n")
    return code


def run(arguments: list[str]) -> tuple[int, bytes]:
    """Exit code and output of `python -m training` with these arguments, in this process."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from serve_app.command_line import run_command
    from training.commands import app

    sys.stdout.flush()
    own = os.dup(1)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 1)
        code = run_command(app, arguments, "python -m training")
        os.dup2(own, 1)
        file.seek(0)
        return code, file.read()


def next_fault(root: Path) -> str:
    file = root / "faults"
    faults = file.read_text().split() if file.exists() else []
    file.write_text("\n".join(faults[1:]))
    return faults[0] if faults else ""


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
