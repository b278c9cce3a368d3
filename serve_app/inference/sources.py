"""Where models come from."""

from __future__ import annotations

from typing import Protocol

from serve_app.artifacts.bundle import Bundle
from serve_app.inference.policy import LoadPolicy


class Source(Protocol):
    """Where models come from: the store, or a registry."""

    def pointer(self) -> str | None:
        """What should be served, as a string that changes when it does; None when there is no model. Raises BundleRefused."""

    def read(self, pointer: str, policy: LoadPolicy) -> Bundle:
        """The verified bundle that `pointer` names, with the files that the policy uses. Raises BundleRefused."""
