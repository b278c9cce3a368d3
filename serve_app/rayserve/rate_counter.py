"""The rate counter of the cluster: one small Ray actor that counts the requests of all replicas of the application."""

from __future__ import annotations

import ray

from serve_app.http.rate_window import Grant, Rate, RateCounter, RateLimitWindow

NAME = "iris-api-limits"
NAMESPACE = "iris-api"


class _RateCounterActor:
    """The class of the actor."""

    def __init__(self) -> None:
        self._windows = RateLimitWindow()

    def take(self, name: str, count: int, seconds: float) -> Grant:
        return self._windows.take(name, Rate(count, seconds))


def open_rate_counter() -> RateCounter:
    """The rate counter of this Ray cluster; creates the actor when it does not exist. A new actor starts with empty windows.

    The actor outlives the replica that created it. The rate counter raises RayActorError when the actor is dead, and looks for the
    actor again in the next call.
    """
    actor: ray.actor.ActorHandle | None = None

    async def take(name: str, rate: Rate) -> Grant:
        nonlocal actor
        if actor is None:
            actor_class = ray.remote(num_cpus=0, max_restarts=-1)(_RateCounterActor)
            actor = actor_class.options(name=NAME, namespace=NAMESPACE, lifetime="detached", get_if_exists=True).remote()
        try:
            count, seconds = await actor.take.remote(name, rate.count, rate.seconds)
        except ray.exceptions.RayActorError:
            actor = None
            raise
        return int(count), float(seconds)

    return take
