"""Publishers and readers in processes of their own; a publisher can be made to die or to fail at one exact call.

    python -m tests.support.publisher die MODEL_DIR KEEP      dies by SIGKILL at its 1st, 2nd, 3rd ... call that changes the disk
    python -m tests.support.publisher fail MODEL_DIR KEEP     its 1st, 2nd, 3rd ... such call fails, as on a full disk
    python -m tests.support.publisher loop MODEL_DIR KEEP N   publishes N times and prints the versions
    python -m tests.support.publisher read MODEL_DIR          reads and verifies until its standard input ends; prints how often

For `die` and `fail` MODEL_DIR is a template: each attempt gets a copy beside it and prints a line of JSON.
"""

from __future__ import annotations

import errno
import io
import itertools
import json
import os
import select
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from serve_app.artifacts.bundle import Bundle
from serve_app.artifacts.manifest import Manifest
from serve_app.artifacts.names import JOBLIB, MANIFEST, METRICS
from serve_app.artifacts.store import Store
from serve_app.errors import StoreError

SIGNATURE = {"features": [{"name": "x"}], "task": "regression"}
MODEL_BYTES = 20_000
CHANGES_THE_DISK = {os.fsync, os.mkdir, os.open, os.rename, os.replace, os.symlink, os.unlink, os.rmdir, open}
WRITES = {"write", "flush", "close"}


def publish(store: Store, text: str) -> int:
    """A model whose every file says `text`, so that a mixture of two would show."""
    said = text.encode()
    files = {JOBLIB: said + b"." * MODEL_BYTES, METRICS: json.dumps({"text": text}).encode(), "golden.json": said}
    return store.publish(files, Manifest.from_dict({"signature": SIGNATURE, "text": text})).version


def at_call(number: int, act: Callable[[], None]) -> None:
    """Do `act` instead of the call with this number, of those that change the disk."""
    left = itertools.count(number, -1)

    def watch(frame: Any, event: str, argument: Any) -> None:
        if event == "c_call" and changes_the_disk(argument) and next(left) == 0:
            sys.setprofile(None)
            act()

    sys.setprofile(watch)


def changes_the_disk(function: Any) -> bool:
    owner = getattr(function, "__self__", None)
    return function in CHANGES_THE_DISK or (isinstance(owner, io.BufferedWriter) and function.__name__ in WRITES)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def attempt(root: Path, keep: int, number: int, mode: str) -> dict[str, Any]:
    """Publish in a child that meets its fate at call `number`; what became of it."""
    said, saying = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(said)
        outcome = "published"
        try:
            at_call(number, die if mode == "die" else fail)
            publish(Store(root, keep=keep), "new")
        except StoreError as error:
            outcome = str(error)
        except BaseException as error:
            outcome = f"surprise: {error!r}"
        finally:
            unharmed = sys.getprofile() is not None
            sys.setprofile(None)
            os.write(saying, json.dumps({"outcome": outcome, "unharmed": unharmed}).encode())
            os._exit(0)
    os.close(saying)
    with open(said) as pipe:
        told = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return {"outcome": "killed", "unharmed": False}
    answer: dict[str, Any] = json.loads(told)
    return answer


def attempts(template: Path, keep: int, mode: str) -> None:
    """One attempt after the other, each at the next call, until one gets through unharmed."""
    for number in itertools.count():
        root = template.with_name(f"{mode}-{number}")
        shutil.copytree(template, root, symlinks=True)
        result = attempt(root, keep, number, mode)
        sys.stdout.write(json.dumps({"root": str(root), "call": number, **result}) + "\n")
        if result["unharmed"]:
            return


def texts(bundle: Bundle) -> set[str]:
    """What the parts of a bundle say; more than one text would be a mixture."""
    said = {data.partition(b".")[0].decode() for name, data in bundle.files.items() if name not in (METRICS, MANIFEST)}
    return said | {bundle.metrics["text"], bundle.manifest.extra["text"]}


def read_until_told(store: Store) -> None:
    sys.stdout.write("reading\n")
    sys.stdout.flush()
    reads = 0
    told = False
    while not told:
        told = bool(select.select([sys.stdin], [], [], 0)[0])
        bundle = store.current()
        if bundle is not None:
            (_,) = texts(bundle)
            assert bundle.source == "store"
            reads += 1
    sys.stdout.write(f"{reads}\n")


def main(mode: str, root: str, keep: str = "10", times: str = "0") -> None:
    if mode == "read":
        read_until_told(Store(root))
    elif mode == "loop":
        store = Store(root, keep=int(keep))
        for number in range(int(times)):
            version = publish(store, f"{os.getpid()}-{number}")
            sys.stdout.write(f"{version}\n")
            sys.stdout.flush()
    else:
        attempts(Path(root), int(keep), mode)


if __name__ == "__main__":
    main(*sys.argv[1:])
