"""Constant load on `/predict`, and the proof that each answer is the one of the version it names."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx2


@dataclass(slots=True)
class Record:
    """What happened under load: answers by version, and everything that was not a right answer."""

    versions: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    @property
    def answered(self) -> int:
        return self.versions.total()


@contextlib.contextmanager
def traffic(
    url: str, row: Mapping[str, Any], expected: Mapping[str, bytes], *, headers: Mapping[str, str], clients: int = 4
) -> Iterator[Record]:
    """`clients` connections ask without a break until the block ends.

    `expected` is the right body for each version; it may grow while the load runs. Only whole, right, correctly labelled
    answers count; anything else is a failure.
    """
    record = Record()
    stopped = threading.Event()

    def ask() -> None:
        with httpx2.Client(headers=dict(headers), timeout=20) as client:
            while not stopped.is_set():
                try:
                    answer = client.post(f"{url}/predict", json=dict(row))
                except httpx2.HTTPError as error:
                    record.failures.append(f"{type(error).__name__}: {error}")
                    continue
                version = answer.headers.get("x-model-version", "")
                if answer.status_code != 200:
                    record.failures.append(f"{answer.status_code}: {answer.text[:200]}")
                elif answer.content != expected.get(version):
                    record.failures.append(f"version {version} answered {answer.text[:200]}")
                else:
                    record.versions[version] += 1

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield record
    finally:
        stopped.set()
        for thread in threads:
            thread.join(30)
