"""Who asks, and how often they may: the client behind the proxies, the limits per key and per client, and the 429."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

from serve_app.http.auth import Verdict
from serve_app.http.problems import HttpResponse, problem
from serve_app.http.rate_window import Rate, RateLimitClient

Network = IPv4Network | IPv6Network
Scope = MutableMapping[str, Any]

COMPAT = {"/predict": Rate(10, 60.0), "/model/info": Rate(20, 60.0), "/health": Rate(30, 60.0)}
"""The limits of the system of old, for each client."""
FREE = frozenset({"/livez", "/readyz", "/metrics", "/health"})
"""What probes and scrapers ask is not limited."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What is limited; nothing by default. `trusted` are the proxies whose X-Forwarded-For is believed."""

    per_key: Rate | None = None
    per_client: Rate | None = None
    per_route: Mapping[str, Rate] = field(default_factory=dict)
    trusted: tuple[Network, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.per_key or self.per_client or self.per_route)


def parse_networks(texts: tuple[str, ...]) -> tuple[Network, ...]:
    """`10.0.0.0/8` and single addresses as networks; raises ValueError."""
    return tuple(ip_network(text, strict=False) for text in texts)


class RateLimiter:
    """Refuses what is over a limit, before the body is read."""

    def __init__(self, limits: Limits, limiter: RateLimitClient, check: Callable[[bytes | None, bytes | None], Verdict]) -> None:
        self._limits = limits
        self._wait_of = limiter.wait_of
        self._check = check
        self._client = lru_cache(maxsize=4096)(_client_of(limits.trusted))

    async def refuse(self, scope: Scope, path: str) -> HttpResponse | None:
        """A 429 for a request over a limit, None for one that may go on. Each call counts as a request."""
        limits, headers = self._limits, dict(scope["headers"])
        route = limits.per_route.get(path)
        if route is not None or (limits.per_client is not None and path not in FREE):
            forwarded = b",".join(value for name, value in scope["headers"] if name == b"x-forwarded-for")
            client = self._client(_peer(scope), forwarded)
            if route is not None and (refused := await _ask(self._wait_of, "per-route", f"{path} {client}", route)):
                return refused
            if limits.per_client is not None and path not in FREE:
                refused = await _ask(self._wait_of, "per-client", client, limits.per_client)
                if refused:
                    return refused
        if limits.per_key is None or path in FREE:
            return None
        key = self._check(headers.get(b"x-api-key"), headers.get(b"authorization"))
        if isinstance(key, str):
            return None  # answered 401 or 403 by whoever is next
        return await _ask(self._wait_of, "per-key", key.name, limits.per_key)


async def _ask(wait_of: Callable[[str, Rate], Awaitable[float]], policy: str, name: str, rate: Rate) -> HttpResponse | None:
    wait = await wait_of(f"{policy} {name}", rate)
    return None if wait == 0 else too_many(policy, rate, wait)


def too_many(policy: str, rate: Rate, wait: float) -> HttpResponse:
    """The 429, with the limit and when to come back."""
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
    """Who opened the connection. Uvicorn puts a forwarded address with port 0 in its place when that was this machine."""
    client = scope.get("client")
    if not client:
        return ""
    return "127.0.0.1" if client[1] == 0 else str(client[0])


def _client_of(trusted: tuple[Network, ...]) -> Callable[[str, bytes], str]:
    """A function from the peer and the X-Forwarded-For to the client: the last address that is no trusted proxy.

    Each proxy appends whom it saw, so whatever a client wrote there itself is further left and never reached.
    """

    def is_proxy(text: str) -> bool:
        address = _address(text)
        return address is not None and any(address in network for network in trusted)

    def client(peer: str, forwarded: bytes) -> str:
        if forwarded and is_proxy(peer):
            for part in reversed(forwarded.decode("latin-1").split(",")):
                text = part.strip()
                if not is_proxy(text):
                    peer = text
                    break
        return _grouped(peer)

    return client


def _grouped(text: str) -> str:
    """An IPv6 client has a whole /64 to itself, so that is what counts; what is no address is one and the same client."""
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
