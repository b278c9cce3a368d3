"""The function that Serve's controller calls at its start (RAY_SERVE_CONTROLLER_CALLBACK_IMPORT_PATH in `serve.env`)."""

from __future__ import annotations

import logging

from serve_app.rayserve import haproxy_supervisor, head_state


def prepare() -> None:
    """Install the supervisor of HAProxy, and note that the head has started with its state."""
    haproxy_supervisor.install()
    try:
        head_state.head_started()
    except OSError:
        logging.getLogger("ray.serve").exception("the start of the head was not noted")
