"""The reports of all replicas of the application, for the console: Ray Serve sends one call to every running replica.

A replica creates the handle for the first page view, not earlier. The handle needs no additional process.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle

METHOD = "report"
"""The method of the deployment's class that returns the report of a replica."""
SECONDS = 3.0
"""Most seconds that a page waits for the replicas."""


def replica_name() -> str:
    """The name of the replica in this process, as in Ray Serve's logs and metrics."""
    return str(serve.get_replica_context().replica_id.unique_id)


class ReplicaReports:
    """Asks every replica for its report. When one of them does not answer in time, there are only the names of all replicas."""

    def __init__(self) -> None:
        self._handle: DeploymentHandle[Any] | None = None
        self._known: set[str] = set()

    async def __call__(self) -> Sequence[dict[str, Any] | str]:
        """Return the reports, sorted by replica, then the names of replicas without a report. Raises Ray Serve's errors."""
        if self._handle is None:
            context = serve.get_replica_context()
            self._handle = serve.get_deployment_handle(context.deployment, context.app_name)
        try:
            results = await self._handle.broadcast(METHOD).results_async(timeout_s=SECONDS, return_exceptions=True)
        except TimeoutError:
            return sorted(self._known)
        reports = sorted((each for each in results if isinstance(each, dict)), key=lambda report: str(report["replica"]))
        names = {str(report["replica"]) for report in reports}
        silent = sorted(self._known - names)[: len(results) - len(reports)]
        unknown = len(results) - len(reports) - len(silent)
        self._known = names | set(silent)
        return [*reports, *silent, *["a replica"] * unknown]
