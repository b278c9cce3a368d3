"""Ray's node of an application on one machine, without the processes that nothing on one machine uses.

Ray has options for them in `ray start` alone, or none at all, so a subclass of Ray's node leaves them out: the monitor of the
autoscaler, which adds machines to a cluster, and the dashboard's server, which Ray starts without its pages also when no dashboard
is wanted. The log monitor, which sends the output of replicas to the terminal, runs as a thread of this process instead.
`docs/how-to/scaling.md` has the memory of each process, measured one by one.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from ray._private import node, ray_constants, utils
from ray._private.log_monitor import LogMonitor, is_proc_alive

LOG_SECONDS = 0.1
"""Time between two looks at the files with the output of Ray's workers, as in Ray's own log monitor."""

_Node: Any = node.Node


class LocalNode(_Node):  # type: ignore[misc]  # Ray's class has no types
    """A head without the autoscaler's monitor, the dashboard's server and the process of the log monitor."""

    def __init__(self, ray_params: Any, *args: Any, **options: Any) -> None:
        self._stopping = threading.Event()
        ray_params.no_monitor = True
        # Ray's default is one port for all. Where another Ray has it, the agent tries it for 3.4 s, and the node waits.
        ray_params.dashboard_agent_listen_port = 0
        super().__init__(ray_params, *args, **options)

    def start_api_server(self, **_: Any) -> None:
        """Start no server; note the address that Ray notes without a dashboard, for which its agent would ask every second."""
        address = f"127.0.0.1:{ray_constants.DEFAULT_DASHBOARD_PORT}".encode()
        namespace = ray_constants.KV_NAMESPACE_DASHBOARD
        self.get_gcs_client().internal_kv_put(ray_constants.DASHBOARD_ADDRESS.encode(), address, True, namespace)

    def start_log_monitor(self) -> None:
        """Start the thread that follows the files with the output of Ray's workers."""
        monitor = LogMonitor(self._node_ip_address, self._logs_dir, self.get_gcs_client(), is_proc_alive)
        threading.Thread(target=self._follow, args=(monitor,), name="log-monitor", daemon=True).start()

    def _follow(self, monitor: Any) -> None:
        while not self._stopping.is_set():
            monitor.update_log_filenames()
            monitor.open_closed_files()
            if not monitor.check_log_files_and_publish_updates():
                self._stopping.wait(LOG_SECONDS)

    def kill_all_processes(self, *args: Any, **options: Any) -> None:
        """Stop the thread and every process of the node."""
        self._stopping.set()
        super().kill_all_processes(*args, **options)


@contextlib.contextmanager
def local_nodes() -> Iterator[None]:
    """Let `ray.init` start a LocalNode within the block.

    Ray imports what its dashboard needs into this process, 12 MB, only to learn that it is installed. The locks have it.
    """
    check = utils.get_dashboard_dependency_error
    node.Node, utils.get_dashboard_dependency_error = LocalNode, lambda: None
    try:
        yield
    finally:
        node.Node, utils.get_dashboard_dependency_error = _Node, check
