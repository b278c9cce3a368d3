"""No proxy between processes of one machine: what talks to a loopback address does so directly, whatever `http_proxy` says."""

from __future__ import annotations

import os
import urllib.request
from collections.abc import Mapping, MutableMapping

LOOPBACK = ("localhost", "127.0.0.1", "::1")
"""Hosts for which no proxy is asked. Clients compare them as text, so each form is named."""

PROXIES = frozenset({"http_proxy", "https_proxy", "all_proxy", "grpc_proxy"})
"""Variables that name a proxy, also in upper case."""


def keep_loopback_direct(environment: MutableMapping[str, str] = os.environ) -> None:
    """Add the loopback hosts to `no_proxy` when a proxy is set, for the clients in this process and in those that it starts.

    Both spellings get the same value: programs differ in which of them they read.
    """
    if not names_proxy(environment):
        return
    hosts = [host.strip() for host in (environment.get("no_proxy") or environment.get("NO_PROXY") or "").split(",")]
    if "*" in hosts:
        return
    value = ",".join(dict.fromkeys([*filter(None, hosts), *LOOPBACK]))
    environment["no_proxy"] = environment["NO_PROXY"] = value


def direct_opener() -> urllib.request.OpenerDirector:
    """An opener of addresses that asks no proxy: for this application, which may also listen on an address that is no loopback."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({}))


def names_proxy(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a variable names a proxy for some clients."""
    return any(value and name.lower() in PROXIES for name, value in environment.items())
