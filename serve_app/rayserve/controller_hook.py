"""What Serve's controller calls when it starts (RAY_SERVE_CONTROLLER_CALLBACK_IMPORT_PATH in `serve.env`)."""

from __future__ import annotations

import logging

from serve_app.rayserve import haproxy_supervisor, head_state


def prepare() -> None:
    """Supervise HAProxy on every node; keep the state of the head, which has come up."""
    haproxy_supervisor.install()
    try:
        head_state.head_started()
    except OSError:
        logging.getLogger("ray.serve").exception("the start of the head was not noted")
