"""Waits for a condition with a deadline and lines of progress, and stops early at a fault that does not pass."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from kuberay.ctl.faults import Fault
from kuberay.ctl.kube import CommandError, echo

T = TypeVar("T")


class DeadlineExceeded(CommandError):
    """A condition was not met in time."""


class Progress:
    """Prints each new text with the seconds since the object was created."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._last = ""

    @property
    def seconds(self) -> float:
        """Seconds since the object was created."""
        return time.monotonic() - self._start

    def __call__(self, text: str) -> None:
        """Print `text` unless it equals the last printed text."""
        if text != self._last:
            echo(f"{self.seconds:5.0f} s  {text}")
            self._last = text


def poll(
    condition: Callable[[Progress], T | None],
    *,
    timeout: float,
    failure: str,
    interval: float = 1.0,
    faults: Callable[[], Sequence[Fault]] = tuple,
    progress: Progress | None = None,
) -> T:
    """Call `condition` every `interval` seconds until it returns a value other than None, and return that value.

    `faults` is called after each attempt without a result. A final fault that lasts for its grace period ends the wait. Every other
    fault is printed once.

    Raises CommandError with the final fault, and DeadlineExceeded with `failure` and the last faults after `timeout` seconds.
    """
    progress = progress or Progress()
    deadline = time.monotonic() + timeout
    first_seen: dict[str, float] = {}
    reported: set[Fault] = set()
    while True:
        value = condition(progress)
        if value is not None:
            return value
        now, current = time.monotonic(), faults()
        first_seen = {fault.where: first_seen.get(fault.where, now) for fault in current}
        for fault in current:
            if now - first_seen[fault.where] >= fault.grace and fault not in reported:
                if fault.final:
                    raise CommandError(str(fault))
                reported.add(fault)
                progress(str(fault))
        if now > deadline:
            hint = "; ".join(str(fault) for fault in current) or "run `make k8s-doctor`"
            raise DeadlineExceeded(f"{failure} after {timeout:.0f} s: {hint}")
        time.sleep(interval)
