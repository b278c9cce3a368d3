"""Rate limits by API key, by client address and by route: finding the client of a request, and the 429 over a limit."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, MutableMapping
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

from serve_app.http.auth import Verdict
from serve_app.http.problems import HttpProblem, problem
from serve_app.http.rate_window import Rate, RateLimitClient
from serve_app.http.routes.predictions import OPEN_INFERENCE, PREDICT

Network = IPv4Network | IPv6Network
Scope = MutableMapping[str, Any]

COMPAT_RATES = {PREDICT: Rate(10, 60.0), "/model/info": Rate(20, 60.0), "/health": Rate(30, 60.0)}
"""The limits for each client in the plain-Kubernetes system."""
FREE = frozenset(
    {"/livez", "/readyz", "/metrics", "/health", "/ping", f"{OPEN_INFERENCE}/health/live", f"{OPEN_INFERENCE}/health/ready"}
)
"""Paths of probes and scrapers. Limits by client and by key do not apply to them."""


def free_paths(health_route: str) -> frozenset[str]:
    """FREE and the health route that the environment of Vertex AI sets (empty: none)."""
    return FREE | {health_route} if health_route else FREE


@dataclass(frozen=True, slots=True)
class Proxies:
    """The networks of the trusted proxies. With `peer`, the program that opened the connection is trusted at any address."""

    networks: tuple[Network, ...] = ()
    peer: bool = False


PEER = "peer"
"""Stands for the program that opened the connection. Use it when a network policy allows connections from the proxy only."""


@dataclass(frozen=True, slots=True)
class RateLimits:
    """The configured limits; false without any limit. `proxies` are the proxies whose X-Forwarded-For is trusted."""

    per_key: Rate | None
    per_client: Rate | None
    per_route: Mapping[str, Rate]
    proxies: Proxies

    def __bool__(self) -> bool:
        return bool(self.per_key or self.per_client or self.per_route)


def parse_proxies(texts: tuple[str, ...]) -> Proxies:
    """The proxies in texts like `10.0.0.0/8`, `10.0.0.1` and `peer`; raises ValueError."""
    return Proxies(tuple(ip_network(text, strict=False) for text in texts if text != PEER), PEER in texts)


class RateLimiter:
    """Refuses requests over a limit, before their body is read."""

    def __init__(
        self,
        limits: RateLimits,
        client: RateLimitClient,
        check: Callable[[bytes | None, bytes | None], Verdict],
        free: Collection[str] = FREE,
    ) -> None:
        self._limits = limits
        self._free = free
        self._wait_of = client.wait_of
        self._check = check
        self._address_of = lru_cache(maxsize=4096)(_client_of(limits.proxies))

    async def refuse(self, scope: Scope, path: str) -> HttpProblem | None:
        """The 429 for a request over a limit; None for an admitted request. Each call counts as a request."""
        limits = self._limits
        per_client = None if path in self._free else limits.per_client
        per_route = limits.per_route.get(path)
        if per_route is not None or per_client is not None:
            forwarded = b",".join(value for name, value in scope["headers"] if name == b"x-forwarded-for")
            client = self._address_of(_peer(scope), forwarded)
            if per_route is not None and (refusal := await self._refuse_name("per-route", f"{path} {client}", per_route)):
                return refusal
            if per_client is not None and (refusal := await self._refuse_name("per-client", client, per_client)):
                return refusal
        return None if limits.per_key is None or path in self._free else await self._refuse_key(scope, limits.per_key)

    async def _refuse_key(self, scope: Scope, rate: Rate) -> HttpProblem | None:
        headers = dict(scope["headers"])
        key = self._check(headers.get(b"x-api-key"), headers.get(b"authorization"))
        if isinstance(key, str):
            return None  # the request gets 401 or 403
        return await self._refuse_name("per-key", key.name, rate)

    async def _refuse_name(self, policy: str, name: str, rate: Rate) -> HttpProblem | None:
        wait = await self._wait_of(f"{policy} {name}", rate)
        return None if wait == 0 else rate_limited(policy, rate, wait)


def rate_limited(policy: str, rate: Rate, wait: float) -> HttpProblem:
    """The 429, with the limit and the seconds after which the client may try again."""
    seconds = max(1, math.ceil(wait))
    return problem(
        429,
        "rate_limited",
        f"Too many requests: {rate.count} in {rate.seconds:g} seconds are allowed; try again in {seconds} s.",
        headers=(
            (b"retry-after", b"%d" % seconds),
            (b"ratelimit-policy", b'"%s";q=%d;w=%d' % (policy.encode(), rate.count, rate.seconds)),
            (b"ratelimit", b'"%s";r=0;t=%d' % (policy.encode(), seconds)),
        ),
    )


def _peer(scope: Scope) -> str:
    """The address that opened the connection. For this machine, uvicorn replaces it with a forwarded address and port 0."""
    client = scope.get("client")
    if not client:
        return ""
    return "127.0.0.1" if client[1] == 0 else str(client[0])


def _client_of(proxies: Proxies) -> Callable[[str, bytes], str]:
    """A function from the peer and X-Forwarded-For to the client: the last address that is not a trusted proxy.

    Each proxy appends the address that it saw. Addresses that the client wrote itself are further left and are never reached.

    Uvicorn's ProxyHeadersMiddleware is not suitable. When every address is trusted, it takes the leftmost address, so a client
    inside a trusted network could write any address and evade its limit. It also does not recognise an IPv4 proxy in its IPv6 form
    (`::ffff:10.0.0.1`).
    """

    def is_proxy(text: str) -> bool:
        address = _address(text)
        return address is not None and any(address in network for network in proxies.networks)

    def client(peer: str, forwarded: bytes) -> str:
        if forwarded and (proxies.peer or is_proxy(peer)):
            for part in reversed(forwarded.decode("latin-1").split(",")):
                text = part.strip()
                if not is_proxy(text):
                    peer = text
                    break
        return _grouped(peer)

    return client


def _grouped(text: str) -> str:
    """The /64 network of an IPv6 address, because one client owns all of it. All texts that are not addresses are one client."""
    address = _address(text)
    if address is None:
        return "unknown"
    return str(address) if address.version == 4 else str(ip_network((address, 64), strict=False))


def _address(text: str) -> IPv4Address | IPv6Address | None:
    """The address in `10.0.0.1`, `10.0.0.1:80`, `::1` or `[::1]:80`; the IPv4 address for an IPv4-mapped IPv6 address."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address
