"""The book of the rate limits: one small Ray actor that counts for all replicas of the application."""

from __future__ import annotations

import ray

from serve_app.http.rate_window import Grant, Rate, RateCounter, RateLimitWindow

NAME = "iris-api-limits"
NAMESPACE = "iris-api"


class _Counter:
    """What runs in the actor."""

    def __init__(self) -> None:
        self._windows = RateLimitWindow()

    def take(self, name: str, count: int, seconds: float) -> Grant:
        return self._windows.take(name, Rate(count, seconds))


def open_rate_counter() -> RateCounter:
    """The book of this cluster; it is made when there is none. A new one starts with empty windows.

    It outlives the replica that made it. When it cannot be reached each replica counts by itself, and looks for it again.
    """
    actor: ray.actor.ActorHandle | None = None

    async def take(name: str, rate: Rate) -> Grant:
        nonlocal actor
        if actor is None:
            made = ray.remote(num_cpus=0, max_restarts=-1)(_Counter)
            actor = made.options(name=NAME, namespace=NAMESPACE, lifetime="detached", get_if_exists=True).remote()
        try:
            given, seconds = await actor.take.remote(name, rate.count, rate.seconds)
        except ray.exceptions.RayActorError:
            actor = None
            raise
        return int(given), float(seconds)

    return take
