"""Rate limits by API key, by client address and by route: which client sent a request, and the 429 over a limit."""

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
"""The limits of the plain-Kubernetes system, for each client."""
FREE = frozenset(
    {"/livez", "/readyz", "/metrics", "/health", "/ping", f"{OPEN_INFERENCE}/health/live", f"{OPEN_INFERENCE}/health/ready"}
)
"""Paths of probes and scrapers, which are not limited."""


def free_paths(health_route: str) -> frozenset[str]:
    """Paths of probes and scrapers, with the one that the environment of Vertex AI asks for (empty: none)."""
    return FREE | {health_route} if health_route else FREE


@dataclass(frozen=True, slots=True)
class Proxies:
    """The proxies in front: their networks, and whether what opened the connection is one, whatever its address."""

    networks: tuple[Network, ...] = ()
    peer: bool = False


PEER = "peer"
"""The proxy that opened the connection, where a network policy lets nothing else open one."""


@dataclass(frozen=True, slots=True)
class RateLimits:
    """What is limited; it is false when nothing is. `proxies` are those whose X-Forwarded-For is believed."""

    per_key: Rate | None
    per_client: Rate | None
    per_route: Mapping[str, Rate]
    proxies: Proxies

    def __bool__(self) -> bool:
        return bool(self.per_key or self.per_client or self.per_route)


def parse_proxies(texts: tuple[str, ...]) -> Proxies:
    """`10.0.0.0/8`, single addresses and `peer`; raises ValueError."""
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
        """A 429 for a request over a limit, None for one that may go on. Each call counts as a request."""
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
            return None  # 401 or 403 follows
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
    """The address that opened the connection. Uvicorn replaces it by a forwarded address with port 0 when it is this machine."""
    client = scope.get("client")
    if not client:
        return ""
    return "127.0.0.1" if client[1] == 0 else str(client[0])


def _client_of(proxies: Proxies) -> Callable[[str, bytes], str]:
    """A function from the peer and the X-Forwarded-For to the client: the last address that is no trusted proxy.

    Each proxy appends the address that it saw, so what a client wrote there itself is further left and never reached. Uvicorn's
    ProxyHeadersMiddleware is not used: when every address is trusted it takes the leftmost, which a client inside a trusted network
    writes itself to evade its limit, and it does not know an IPv4 proxy by its IPv6 form (`::ffff:10.0.0.1`).
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
    """The /64 of an IPv6 address, because a client has all of it; text that is no address counts as one and the same client."""
    address = _address(text)
    if address is None:
        return "unknown"
    return str(address) if address.version == 4 else str(ip_network((address, 64), strict=False))


def _address(text: str) -> IPv4Address | IPv6Address | None:
    """The address in `10.0.0.1`, `10.0.0.1:80`, `::1` or `[::1]:80`; an IPv4 address inside an IPv6 one is that."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address
