"""Supervisor of HAProxy: replaces an HAProxy that has ended or hangs.

After three consecutive failures, Serve's own health check starts a new actor with a new HAProxy, which does not know the replicas
at first. The supervisor runs in the actor that started HAProxy. So it notices the end at once, and starts HAProxy with the replicas
that the actor knows.
"""

# ruff: noqa: SLF001, Serve has no public name for its owner of HAProxy
from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from asyncio.subprocess import Process
from pathlib import Path
from typing import Any

import ray
from ray.serve._private import controller
from ray.serve._private.haproxy import HAProxyManager

logger = logging.getLogger("ray.serve")

PROBE_SECONDS = 0.25
"""Seconds between two probes of a running HAProxy; the supervisor notices its end without probes."""
PROBE_TIMEOUT = 1.0
MISSED_PROBES = 2
"""Number of consecutive probes without an answer within `PROBE_TIMEOUT` after which HAProxy counts as hanging."""
LATE_SECONDS = 0.5
"""A probe that ends this much later than its time limit proves nothing: this process had no CPU, or was frozen."""
RETRY_SECONDS = 1.0
"""Seconds until the next attempt when HAProxy did not start. If all attempts fail, Serve's own check replaces the actor."""
SHUTDOWN_SECONDS = 3.0
"""Time limit for the end of the supervisor; Serve kills the actor after 5 s."""

_Manager: Any = HAProxyManager.__ray_metadata__.modified_class


class SupervisedHAProxyManager(_Manager):  # type: ignore[misc]  # Ray's class has no types
    """Serve's owner of HAProxy on one node, with a supervisor."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._stopping = False
        self._supervisor = self.event_loop.create_task(self._supervise())

    async def shutdown(self) -> None:
        """Stop HAProxy for good, and also the process of a restart in progress."""
        self._stopping = True
        await super().shutdown()
        self._kill_started()
        await asyncio.wait([self._supervisor], timeout=SHUTDOWN_SECONDS)
        self._kill_started()

    async def _reload_haproxy(self) -> None:
        if not self._stopping:
            await super()._reload_haproxy()

    def _kill_started(self) -> None:
        """Kill the HAProxy processes of a reload or restart in progress, because Serve stops only processes that have started."""
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and self._haproxy._is_our_haproxy(int(entry.name)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(entry.name), signal.SIGKILL)

    async def _supervise(self) -> None:
        await self._haproxy_start_task
        while not self._stopping:
            try:
                process = self._haproxy._proc
                await self._watch(process)
                await self._replace(process)
            except Exception:
                logger.exception("HAProxy was not started again")
                await asyncio.sleep(RETRY_SECONDS)

    async def _watch(self, process: Process) -> None:
        """Return when the process has ended, hangs, or is no longer the process that Serve uses."""
        missed = 0
        while process is self._haproxy._proc and missed < MISSED_PROBES:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), PROBE_SECONDS)
                return
            missed = 0 if await self._answers() else missed + 1

    async def _answers(self) -> bool:
        """Whether HAProxy answers; also True when this process was too late to know."""
        latest = self.event_loop.time() + PROBE_TIMEOUT + LATE_SECONDS
        try:
            return bool(await asyncio.wait_for(self._haproxy.is_running(), PROBE_TIMEOUT))
        except TimeoutError:
            return bool(self.event_loop.time() > latest)

    async def _replace(self, process: Process) -> None:
        """Start HAProxy in place of a process that has ended or hangs, unless Serve has replaced or stopped it."""
        if process is self._haproxy._proc and process.returncode is None:
            logger.error("HAProxy (pid %d) does not answer, so it is killed", process.pid)
            process.kill()
            await process.wait()
        async with self._reload_lock:  # Serve's own changes of HAProxy wait for it
            if self._stopping or process is not self._haproxy._proc:
                return
            logger.error("HAProxy (pid %d) has ended with %d; another one is started", process.pid, process.returncode)
            await self._haproxy.start()
            self._haproxy._retire_log_files(process)
            if self._stopping:
                await self._haproxy.stop()


def install() -> None:
    """Let the controller in this process start supervised HAProxies."""
    controller.HAProxyManager = ray.remote(num_cpus=0)(SupervisedHAProxyManager)
