"""The address of a table: its scheme and host, and its form without secrets for messages."""

from __future__ import annotations

import ipaddress
from urllib.parse import unquote, urlsplit

from serve_app.errors import UsageError

BUCKETS = ("gs", "s3")
WEB = ("http", "https")

CLUSTER_DOMAINS = ("svc", "svc.cluster.local", "localhost")
"""Domains of Services of this cluster and of this machine."""


def scheme(uri: str) -> str:
    """The scheme in lower case; empty for a path on this machine."""
    name, separator, _ = uri.partition("://")
    return name.lower() if separator else ""


def redacted(uri: str) -> str:
    """The address without user name, password, query and fragment, which may be secret."""
    name, separator, rest = uri.partition("://")
    if not separator:
        return uri
    place = without_user(rest)
    if name.lower() in WEB:
        return f"{name}://{place.partition('?')[0].partition('#')[0]}"
    return f"{name}://{place.partition('?')[0]}"


def without_user(rest: str) -> str:
    """The address after the scheme, without user name and password. A password may contain a slash that is not encoded."""
    authority, _, _ = rest.partition("/")
    if "@" in authority:
        return authority.rpartition("@")[2] + rest[len(authority) :]
    _, colon, port = authority.partition(":")
    if colon and not port.isdigit():
        return rest.partition("@")[2] if "@" in rest else ""
    return rest


def web_file_path(uri: str) -> str:
    """Host and last part of the path of a web address (`table` without a path); raises UsageError without a host."""
    try:
        place = urlsplit(uri)
        host, _ = place.hostname, place.port
    except ValueError:
        host = None
    if not host:
        raise UsageError(f"{redacted(uri)} is not an address of a file: write https://HOST/PATH")
    name = unquote(place.path.rstrip("/").rpartition("/")[2]).replace("/", "_")
    return f"{host}/{name or 'table'}"


def in_cluster(host: str) -> bool:
    """Whether a host is this machine or a Service of this cluster: a name without a dot, or a name below CLUSTER_DOMAINS."""
    host = host.lower().rstrip(".")
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return "." not in host or host.endswith(tuple(f".{domain}" for domain in CLUSTER_DOMAINS))


def check_plain_http(name: str, host: str, *, allowed: bool) -> None:
    """Raise UsageError for http:// to a host outside the cluster, because others can read and change the table in transit."""
    if not allowed and not in_cluster(host):
        raise UsageError(f"the connection to {host} for {name} is not encrypted: use https://, or accept it with --allow-http")
