"""Ray's node for an application on one machine, without processes that one machine does not need.

`ray.init` has no options for them, so a subclass of Ray's node omits them: the monitor of the autoscaler, which adds machines to a
cluster, and the dashboard's server, which Ray starts even without a dashboard. The log monitor, which sends the output of replicas
to the terminal, runs as a thread of this process instead. `docs/how-to/scaling.md` has the measured memory of each process.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from ray._private import node, ray_constants, utils
from ray._private.log_monitor import LogMonitor, is_proc_alive

LOG_SECONDS = 0.1
"""Seconds between two reads of the output files of Ray's workers, as in Ray's own log monitor."""

_Node: Any = node.Node


class LocalNode(_Node):  # type: ignore[misc]  # Ray's class has no types
    """A head without the autoscaler's monitor, the dashboard's server and the process of the log monitor."""

    def __init__(self, ray_params: Any, *args: Any, **options: Any) -> None:
        self._stopping = threading.Event()
        ray_params.no_monitor = True
        # Ray's default is a fixed port. If another Ray has it, the agent tries it for 3.4 s, and the node waits.
        ray_params.dashboard_agent_listen_port = 0
        super().__init__(ray_params, *args, **options)

    def start_api_server(self, **_: Any) -> None:
        """Start no server; record the address that Ray records without a dashboard, because its agent asks for it every second."""
        address = f"127.0.0.1:{ray_constants.DEFAULT_DASHBOARD_PORT}".encode()
        namespace = ray_constants.KV_NAMESPACE_DASHBOARD
        self.get_gcs_client().internal_kv_put(ray_constants.DASHBOARD_ADDRESS.encode(), address, True, namespace)

    def start_log_monitor(self) -> None:
        """Start the thread that follows the output files of Ray's workers."""
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

    The block also skips Ray's check for the packages of its dashboard, which imports them into this process (12 MB). The locks have
    them.
    """
    check = utils.get_dashboard_dependency_error
    node.Node, utils.get_dashboard_dependency_error = LocalNode, lambda: None
    try:
        yield
    finally:
        node.Node, utils.get_dashboard_dependency_error = _Node, check
