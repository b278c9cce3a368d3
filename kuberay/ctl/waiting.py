"""One way to wait: a condition, a deadline, a line of progress, and an end as soon as waiting cannot help."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from kuberay.ctl.faults import Fault
from kuberay.ctl.kube import CommandError, echo

T = TypeVar("T")


class DeadlineExceeded(CommandError):
    """A condition did not hold within its time."""


class Progress:
    """Prints what changed, with the seconds since it was created."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._last = ""

    @property
    def seconds(self) -> float:
        """Seconds since the object was created."""
        return time.monotonic() - self._start

    def __call__(self, text: str) -> None:
        """Print `text` unless it is the text of the line before."""
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
    """Call `condition` every `interval` seconds until it returns something other than None, and return that.

    `faults` is called after each attempt without a result. A final fault that lasts for its grace period ends the waiting; a fault
    that may pass is printed once.

    Raises CommandError with a lasting final fault, and DeadlineExceeded after `timeout` seconds with `failure` and the faults of
    the last attempt.
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
