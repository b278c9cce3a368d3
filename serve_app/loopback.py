"""Direct connections between processes of one machine: clients of a loopback address do not use the proxy of `http_proxy`."""

from __future__ import annotations

import os
import urllib.request
from collections.abc import Mapping, MutableMapping

LOOPBACK = ("localhost", "127.0.0.1", "::1")
"""Hosts that clients must reach without a proxy. Clients compare them as text, so each form is listed."""

PROXIES = frozenset({"http_proxy", "https_proxy", "all_proxy", "grpc_proxy"})
"""Variables that set a proxy, also in upper case."""


def keep_loopback_direct(environment: MutableMapping[str, str] = os.environ) -> None:
    """Add the loopback hosts to `no_proxy` when a proxy is set, for clients in this process and in processes that it starts.

    `no_proxy` and `NO_PROXY` get the same value, because some programs read only one of them.
    """
    if not names_proxy(environment):
        return
    hosts = [host.strip() for host in (environment.get("no_proxy") or environment.get("NO_PROXY") or "").split(",")]
    if "*" in hosts:
        return
    value = ",".join(dict.fromkeys([*filter(None, hosts), *LOOPBACK]))
    environment["no_proxy"] = environment["NO_PROXY"] = value


def direct_opener() -> urllib.request.OpenerDirector:
    """A URL opener without a proxy, for this application, which may also listen on an address that is not a loopback address."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({}))


def names_proxy(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a variable sets a proxy."""
    return any(value and name.lower() in PROXIES for name, value in environment.items())
