"""experiment"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from typing import Any

from ray._private import node as ray_node
from ray._private.log_monitor import LogMonitor, is_proc_alive

LEAN = set(os.environ.get("X_LEAN", "").split(","))


class LocalNode(ray_node.Node):
    def __init__(self, ray_params: Any, *args: Any, **options: Any) -> None:
        if "monitor" in LEAN:
            ray_params.no_monitor = True
        if "ports" in LEAN:
            names = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port")
            with contextlib.ExitStack() as probes:
                for name in names:
                    probe = probes.enter_context(socket.socket())
                    probe.bind(("127.0.0.1", 0))
                    setattr(ray_params, name, probe.getsockname()[1])
        super().__init__(ray_params, *args, **options)

    def start_api_server(self, **options: Any) -> None:
        if "dashboard" not in LEAN:
            super().start_api_server(**options)

    def start_log_monitor(self) -> None:
        if "logs" not in LEAN:
            super().start_log_monitor()
            return
        monitor = LogMonitor(self._node_ip_address, self._logs_dir, self.get_gcs_client(), is_proc_alive)
        threading.Thread(target=monitor.run, daemon=True, name="log_monitor").start()


@contextlib.contextmanager
def installed() -> Iterator[None]:
    full = ray_node.Node
    ray_node.Node = LocalNode
    try:
        yield
    finally:
        ray_node.Node = full
