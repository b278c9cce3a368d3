"""The memory that a process may use, and the largest share of it for the files of a model."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

MODEL_SHARE = 0.25
"""Largest share of the memory for the files that a replica reads from one bundle. During a swap, the process holds the bytes of the
new model, its loaded form, the loaded form of the old model, and the application."""

_CGROUPS = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


def memory_limit(cgroups: Path = _CGROUPS, own: Path = _OWN) -> int:
    """Bytes that this process may use: the smallest limit of its control groups (version 1 or 2), or the memory of the machine."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([machine, *_limits(cgroups, own)])


def max_model_bytes() -> int:
    """Maximum total size in bytes of the files that a replica reads from one bundle."""
    return int(memory_limit() * MODEL_SHARE)


def _limits(cgroups: Path, own: Path) -> Iterator[int]:
    for folder, name in _folders(cgroups, own):
        try:
            text = (folder / name).read_text().strip()
        except OSError:
            continue
        if text.isdigit():  # else `max`
            yield int(text)


def _folders(cgroups: Path, own: Path) -> Iterator[tuple[Path, str]]:
    """The folders of the control groups of this process up to the root; inside a container, the root is that of the container."""
    v2, v1 = (cgroups, "memory.max"), (cgroups / "memory", "memory.limit_in_bytes")
    yield from (v2, v1)
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        root, name = v2 if number == "0" else v1
        if number == "0" or "memory" in controllers.split(","):
            group = PurePosixPath(path.lstrip("/"))
            if ".." not in group.parts:
                yield from ((root / folder, name) for folder in (group, *group.parents))
